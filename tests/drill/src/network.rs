//! The members' networks: a bridge with an address for the clients, and one network namespace for each member. Cuts are
//! made where packets arrive, so that the sender sees silence, as in a real network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use holdfast_e2e::kubernetes::run;

/// How many members there can be.
pub const MEMBERS: usize = 4;
/// From 198.18.0.0/15, the addresses that are kept for measurements; only seen inside the drill's own namespace.
const NET: [u8; 3] = [198, 18, 77];

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The clients, and the drill itself.
    Clients,
    /// A member, by its number from 0.
    Member(usize),
}

impl Place {
    /// Its address on the bridge.
    pub fn address(self) -> Ipv4Addr {
        let last = match self {
            Self::Clients => 1,
            Self::Member(number) => 11 + u8::try_from(number).unwrap_or(u8::MAX),
        };
        Ipv4Addr::new(NET[0], NET[1], NET[2], last)
    }
}

/// What is wrong with the network now.
#[derive(Default)]
struct Trouble {
    /// Nothing gets from the first to the second.
    cuts: BTreeSet<(Place, Place)>,
    /// Percent of packets that are lost on the way from the first to the second.
    loss: BTreeMap<(Place, Place), u8>,
}

/// The network of a drill.
pub struct Network {
    trouble: Mutex<Trouble>,
}

/// The member's namespace, for `nsenter`.
pub fn namespace_file(member: usize) -> String {
    format!("/run/netns/{}", namespace(member))
}

fn namespace(member: usize) -> String {
    format!("member-{member}")
}

fn bridge_port(member: usize) -> String {
    format!("to-member-{member}")
}

async fn ip(words: &str) -> Result<()> {
    run("ip", &words.split(' ').collect::<Vec<_>>(), None).await.map(|_| ())
}

async fn inside(member: usize, words: &str) -> Result<()> {
    let net = format!("--net={}", namespace_file(member));
    let args: Vec<&str> = std::iter::once(net.as_str()).chain(words.split(' ')).collect();
    run("nsenter", &args, None).await.map(|_| ())
}

impl Network {
    /// Makes the bridge and a namespace for each member. The mounts and the network of this process are its own.
    ///
    /// # Errors
    /// What `ip` said.
    pub async fn build() -> Result<Self> {
        std::fs::create_dir_all("/run/netns").context("make /run/netns")?;
        run("mount", &["-t", "tmpfs", "tmpfs", "/run/netns"], None).await?;
        ip("link set lo up").await?;
        ip("link add members type bridge").await?;
        ip(&format!("addr add {}/24 dev members", Place::Clients.address())).await?;
        ip("link set members up").await?;
        for member in 0..MEMBERS {
            let (name, port) = (namespace(member), bridge_port(member));
            ip(&format!("netns add {name}")).await?;
            ip(&format!("link add {port} type veth peer name eth0 netns {name}")).await?;
            ip(&format!("link set {port} master members up")).await?;
            inside(member, "ip link set lo up").await?;
            inside(member, &format!("ip addr add {}/24 dev eth0", Place::Member(member).address())).await?;
            inside(member, "ip link set eth0 up").await?;
        }
        Ok(Self { trouble: Mutex::default() })
    }

    fn change(&self, change: impl FnOnce(&mut Trouble)) {
        change(&mut self.trouble.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Nothing gets from `from` to `to` any more; the other direction stays.
    ///
    /// # Errors
    /// What `nft` said.
    pub async fn cut_one_way(&self, from: Place, to: Place) -> Result<()> {
        self.change(|trouble| _ = trouble.cuts.insert((from, to)));
        self.apply(to).await
    }

    /// Nothing gets through between the two.
    ///
    /// # Errors
    /// What `nft` said.
    pub async fn cut(&self, one: Place, other: Place) -> Result<()> {
        self.cut_one_way(one, other).await?;
        self.cut_one_way(other, one).await
    }

    /// Loses so many percent of what `from` sends to `to`.
    ///
    /// # Errors
    /// What `nft` said.
    pub async fn lose(&self, from: Place, to: Place, percent: u8) -> Result<()> {
        self.change(|trouble| _ = trouble.loss.insert((from, to), percent));
        self.apply(to).await
    }

    /// Takes the member's cable out, or puts it back.
    ///
    /// # Errors
    /// What `ip` said.
    pub async fn plug(&self, member: usize, up: bool) -> Result<()> {
        ip(&format!("link set {} {}", bridge_port(member), if up { "up" } else { "down" })).await
    }

    /// Bounds the rate to and from a member, in kilobits a second.
    ///
    /// # Errors
    /// What `tc` said.
    pub async fn limit_rate(&self, member: usize, kilobits: u32) -> Result<()> {
        let queue = format!("root tbf rate {kilobits}kbit burst 8kb latency 400ms");
        let port = format!("qdisc replace dev {} {queue}", bridge_port(member));
        run("tc", &port.split(' ').collect::<Vec<_>>(), None).await?;
        inside(member, &format!("tc qdisc replace dev eth0 {queue}")).await
    }

    /// Makes the network whole again: cuts, losses, cables, rates.
    ///
    /// # Errors
    /// What `nft`, `ip` or `tc` said.
    pub async fn heal(&self) -> Result<()> {
        let places: BTreeSet<Place> = {
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            let trouble = std::mem::take(&mut *trouble);
            trouble.cuts.iter().map(|(_, to)| *to).chain(trouble.loss.keys().map(|(_, to)| *to)).collect()
        };
        for place in places {
            self.apply(place).await?;
        }
        Ok(())
    }

    /// Undoes [`Network::limit_rate`] everywhere.
    ///
    /// # Errors
    /// None that matter: a port without a limit is left as it is.
    pub async fn lift_rates(&self) -> Result<()> {
        for member in 0..MEMBERS {
            let port = bridge_port(member);
            let _ = run("tc", &["qdisc", "del", "dev", &port, "root"], None).await;
            let _ = inside(member, "tc qdisc del dev eth0 root").await;
        }
        Ok(())
    }

    /// Renders the rules of one place and loads them in one step.
    async fn apply(&self, at: Place) -> Result<()> {
        let rules = {
            let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            render(&trouble, at)
        };
        match at {
            Place::Clients => run("nft", &["-f", "-"], Some(&rules)).await.map(|_| ()),
            Place::Member(member) => {
                let net = format!("--net={}", namespace_file(member));
                run("nsenter", &[&net, "nft", "-f", "-"], Some(&rules)).await.map(|_| ())
            }
        }
    }
}

fn render(trouble: &Trouble, at: Place) -> String {
    let mut rules = String::from("table inet drill {}\ndelete table inet drill\ntable inet drill {\n");
    rules.push_str("  chain arriving {\n    type filter hook input priority 0; policy accept;\n");
    for (from, _) in trouble.cuts.iter().filter(|(_, to)| *to == at) {
        rules.push_str(&format!("    ip saddr {} drop\n", from.address()));
    }
    for ((from, _), percent) in trouble.loss.iter().filter(|((_, to), _)| *to == at) {
        rules.push_str(&format!("    ip saddr {} numgen random mod 100 < {percent} drop\n", from.address()));
    }
    rules.push_str("  }\n}\n");
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_one_way_cut_is_a_rule_of_the_receiver_only() {
        let mut trouble = Trouble::default();
        trouble.cuts.insert((Place::Member(0), Place::Member(2)));
        trouble.loss.insert((Place::Clients, Place::Member(2)), 20);
        let rules = render(&trouble, Place::Member(2));
        assert!(rules.contains("ip saddr 198.18.77.11 drop\n"), "{rules}");
        assert!(rules.contains("ip saddr 198.18.77.1 numgen random mod 100 < 20 drop\n"), "{rules}");
        assert!(!render(&trouble, Place::Member(0)).contains("drop"));
    }
}
