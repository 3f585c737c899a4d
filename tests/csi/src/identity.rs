//! The identity service, the same on the controller's and on every node's socket.

use crate::DRIVER;
use crate::protocol::{
    BoolValue, Empty, GetPluginCapabilitiesResponse, GetPluginInfoResponse, Kind, PluginCapability, ProbeResponse,
    plugin,
};
use crate::rpc::Methods;

/// Adds the identity service.
#[must_use]
pub fn methods(methods: Methods) -> Methods {
    methods
        .add("/csi.v1.Identity/GetPluginInfo", |_: Empty| async {
            let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
            Ok(GetPluginInfoResponse { name: DRIVER.to_owned(), vendor_version })
        })
        .add("/csi.v1.Identity/GetPluginCapabilities", |_: Empty| async { Ok(capabilities()) })
        .add("/csi.v1.Identity/Probe", |_: Empty| async {
            Ok(ProbeResponse { ready: Some(BoolValue { value: true }) })
        })
}

fn capabilities() -> GetPluginCapabilitiesResponse {
    let service = |kind| PluginCapability { service: Some(Kind { r#type: kind }), volume_expansion: None };
    let online = PluginCapability { service: None, volume_expansion: Some(Kind { r#type: plugin::EXPANSION_ONLINE }) };
    GetPluginCapabilitiesResponse {
        capabilities: vec![
            service(plugin::CONTROLLER_SERVICE),
            service(plugin::VOLUME_ACCESSIBILITY_CONSTRAINTS),
            online,
        ],
    }
}
