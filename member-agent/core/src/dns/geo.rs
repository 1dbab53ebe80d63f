//! Where a client is, by a table of networks. The longest network that holds an address counts.

use std::collections::HashMap;
use std::net::IpAddr;

use fairlead_model::dns::Network;

/// Networks by length, the longest first, so that one look per length finds the answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Geo {
    v4: Vec<(u8, HashMap<u128, String>)>,
    v6: Vec<(u8, HashMap<u128, String>)>,
}

impl Geo {
    /// Of two entries for one network the first counts.
    pub fn new(networks: &[Network]) -> Self {
        let mut geo = Self::default();
        for network in networks {
            let (bits, width) = bits_of(network.address);
            let family = if width == 32 { &mut geo.v4 } else { &mut geo.v6 };
            let length = network.prefix_len.min(width);
            let at = match family.iter().position(|(known, _)| *known == length) {
                Some(at) => at,
                None => {
                    family.push((length, HashMap::new()));
                    family.len() - 1
                }
            };
            let key = masked(bits, length, width);
            family[at].1.entry(key).or_insert_with(|| network.region.clone());
        }
        geo.v4.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        geo.v6.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        geo
    }

    /// The region of an address; none when no network holds it.
    pub fn region(&self, address: IpAddr) -> Option<&str> {
        let (bits, width) = bits_of(address);
        let family = if width == 32 { &self.v4 } else { &self.v6 };
        let look = |(length, networks): &'_ (u8, HashMap<u128, String>)| {
            networks.get_key_value(&masked(bits, *length, width)).map(|(key, _)| *key)
        };
        let (at, key) = family.iter().enumerate().find_map(|(at, l)| Some((at, look(l)?)))?;
        family[at].1.get(&key).map(String::as_str)
    }
}

/// An IPv4 address in IPv6 clothes is that IPv4 address.
fn bits_of(address: IpAddr) -> (u128, u8) {
    match address.to_canonical() {
        IpAddr::V4(v4) => (u32::from(v4).into(), 32),
        IpAddr::V6(v6) => (v6.into(), 128),
    }
}

fn masked(bits: u128, length: u8, width: u8) -> u128 {
    bits.checked_shr(u32::from(width - length)).unwrap_or(0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_longest_network_counts() {
        let networks = [
            ("0.0.0.0/0", "any"),
            ("10.0.0.0/8", "eu"),
            ("10.7.0.0/16", "us"),
            ("10.7.7.7/32", "one"),
            ("10.0.0.0/8", "late"),
            ("2001:db8::/32", "six"),
            ("::/0", "rest"),
        ];
        let geo = Geo::new(&networks.map(|(cidr, region)| Network::parse(cidr, region).unwrap()));
        for (address, region) in [
            ("192.0.2.1", "any"),
            ("10.1.1.1", "eu"),
            ("10.7.1.1", "us"),
            ("10.7.7.7", "one"),
            ("::ffff:10.7.7.7", "one"),
            ("2001:db8::1", "six"),
            ("2001:db9::1", "rest"),
        ] {
            assert_eq!(geo.region(address.parse().unwrap()), Some(region), "{address}");
        }
        assert_eq!(Geo::default().region("10.0.0.1".parse().unwrap()), None);
    }
}
