use bytes::Bytes;
use holdfast_wire::{FieldTable, FieldValue, ShortStr};

use crate::{Credentials, Mechanism};

/// The credentials in a SASL response; `None` if it is malformed, which is a refused log-in.
pub(crate) fn credentials(mechanism: Mechanism, response: &Bytes, external: Option<&ShortStr>) -> Option<Credentials> {
    match mechanism {
        Mechanism::Plain => plain(response),
        Mechanism::AmqPlain => amq_plain(response),
        Mechanism::External => Some(Credentials { mechanism, user: external?.clone(), password: Bytes::new() }),
        Mechanism::Anonymous => {
            Some(Credentials { mechanism, user: ShortStr::from_static("guest"), password: Bytes::new() })
        }
    }
}

/// RFC 4616: authorization identity, NUL, user, NUL, password. To act for another user is not offered.
fn plain(response: &Bytes) -> Option<Credentials> {
    let mut parts = response.split(|octet| *octet == 0);
    let (identity, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || !(identity.is_empty() || identity == user) {
        return None;
    }
    let user = ShortStr::new(response.slice_ref(user)).ok()?.detached();
    Some(Credentials { mechanism: Mechanism::Plain, user, password: response.slice_ref(password) })
}

/// The entries of a field table, without its length.
fn amq_plain(response: &Bytes) -> Option<Credentials> {
    let table = FieldTable::parse(response.clone()).ok()?;
    let (Some(FieldValue::LongStr(user)), Some(FieldValue::LongStr(password))) =
        (table.get("LOGIN"), table.get("PASSWORD"))
    else {
        return None;
    };
    let user = ShortStr::new(user).ok()?.detached();
    Some(Credentials { mechanism: Mechanism::AmqPlain, user, password })
}
