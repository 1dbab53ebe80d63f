//! Every derived name, in one place.
//!
//! Two different things never get one name: parts are joined by a character that neither part can
//! have, and what is too long is cut and made distinct by a hash. A cut name always has exactly the
//! greatest length, an uncut one is always shorter, so the two never meet.

use fairlead_crds::keys;
use fairlead_model::id::is_label;
use fairlead_model::plan::{DoorService, Passage};
use fairlead_model::{ClusterUid, MemberId, NsName, ServicePort};
use sha2::{Digest as _, Sha256};

/// Longest name of most kinds (a DNS subdomain).
pub const SUBDOMAIN_LEN_MAX: usize = 253;
/// Longest name that also fits a label value. Gateways keep to it: implementations put the name of a
/// Gateway into labels of what they make for it.
pub const LABEL_LEN_MAX: usize = 63;
/// Hexadecimal digits of a hash in a name: 80 bits, so that nobody finds two texts for one name.
const HASH_LEN: usize = 20;
/// Characters of a service's own name in the name of its [`passage`]: what a label has left.
const PASSAGE_HEAD_MAX: usize = 34;

/// Name of a ListenerSet's listener in the Gateway that members hold: those of several sets meet there.
/// The hash keeps them apart; nobody's own listener has such a name by chance.
pub fn set_listener(set: &NsName, listener: &str) -> String {
    const HEAD_LEN: usize = LABEL_LEN_MAX - HASH_LEN - 1;
    let head: String = listener.chars().filter(char::is_ascii).take(HEAD_LEN).collect();
    let head = head.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
    format!("{head}-{}", hash(&format!("{set}/{listener}")))
}

/// Name of the route that mirrors a global route.
pub fn route_mirror(name: &str) -> String {
    fit(name, keys::GLOBAL_SUFFIX, SUBDOMAIN_LEN_MAX)
}

/// Name of the Gateway that mirrors a global gateway.
pub fn gateway_mirror(name: &str) -> String {
    fit(name, keys::GLOBAL_SUFFIX, LABEL_LEN_MAX)
}

/// Name of the door route of a service: `NAMESPACE.SERVICE`. Neither part has a dot, so neither
/// another service nor our own routes (`probe`, `readiness`) can have it. `shard` is empty or digits.
pub fn door_route(service: &NsName, shard: &str) -> String {
    fit(&dotted(&[&service.namespace, &service.name]), &dotted_suffix(shard), SUBDOMAIN_LEN_MAX)
}

/// Name of a ReferenceGrant that opens a namespace's exported services to our doors.
pub fn door_grant(shard: &str) -> String {
    match shard {
        "" => keys::EAST_WEST_GATEWAY.to_owned(),
        shard => format!("{}-{shard}", keys::EAST_WEST_GATEWAY),
    }
}

/// Name of a ReferenceGrant that opens our member Services to the routes of a namespace. A dot
/// before the namespace, since namespaces have none: `shop` in parts never meets `shop-1`.
pub fn routes_grant(namespace: &str, shard: &str) -> String {
    fit(&dotted(&[keys::GRANT_ROUTES, namespace]), &dotted_suffix(shard), SUBDOMAIN_LEN_MAX)
}

/// Name of a ReferenceGrant that opens our client certificate to Gateways.
pub fn client_cert_grant(shard: &str) -> String {
    match shard {
        "" => keys::GRANT_CLIENT_CERT.to_owned(),
        shard => format!("{}-{shard}", keys::GRANT_CLIENT_CERT),
    }
}

/// Name of the DNSEndpoint with the names of a DNSPolicy: `NAMESPACE.POLICY.names`.
pub fn dns_endpoint(namespace: &str, policy: &str) -> String {
    fit(&dotted(&[namespace, policy]), ".names", SUBDOMAIN_LEN_MAX)
}

/// Name of the Service, EndpointSlices' Service and BackendTLSPolicy that stand for a remote member.
pub fn peer(member: &MemberId) -> String {
    keys::member_object(member.as_str())
}

/// Name of the ConfigMap with a remote member's CA.
pub fn peer_ca(member: &MemberId) -> String {
    format!("{}-ca", peer(member))
}

/// Name of the EndpointSlice of a remote member for `v4` or `v6`.
pub fn peer_slice(member: &MemberId, family: &str) -> String {
    keys::member_slice(member.as_str(), family)
}

/// Name of the Service, EndpointSlices' Service and BackendTLSPolicy that stand for one service of a remote
/// member. Two hyphens: the name of a member starts with none, so that no member's [`peer`] is called so.
/// A Service's name is a label.
pub fn passage(member: &MemberId, passage: &Passage) -> String {
    let Passage { service, port, used_from, way, lane, .. } = passage;
    let from = &used_from.namespace;
    let hash = hash(&format!("{member} {from} {service} {port} {way:?} {lane}"));
    let head: String = service.name.chars().take(PASSAGE_HEAD_MAX).collect();
    let head = head.trim_end_matches('-');
    format!("{}-{head}-{hash}", keys::member_object(""))
}

/// Name of the EndpointSlice of such a Service for `v4` or `v6`.
pub fn passage_slice(passage: &str, family: &str) -> String {
    format!("{passage}-{family}")
}

/// Name of a door route of a service for those who reach it without headers, from one namespace.
pub fn sni_route(behind: &DoorService) -> String {
    let DoorService { from_namespace, service, port } = behind;
    let port = port.to_string();
    let name = dotted(&[&service.namespace, &service.name, &port, from_namespace]);
    fit(&name, ".sni", SUBDOMAIN_LEN_MAX)
}

/// Name of a door route of a service for those who reach it by a port of its own.
pub fn port_route(service: &NsName, port: ServicePort) -> String {
    let name = dotted(&[&service.namespace, &service.name, &port.to_string()]);
    fit(&name, ".port", SUBDOMAIN_LEN_MAX)
}

/// Server name of one service behind a cluster's doors.
pub fn sni_name(label: &str, uid: &ClusterUid) -> String {
    format!("{label}.{}.fairlead.internal", uid_label(uid))
}

/// What in the certificate of a cluster's doors stands for all of these.
pub fn sni_wildcard(uid: &ClusterUid) -> String {
    sni_name("*", uid)
}

/// Host name in the certificate of a cluster's doors, and the host of probes.
pub fn server_name(uid: &ClusterUid) -> String {
    keys::door_hostname(&uid_label(uid))
}

/// Host name in the certificate that a cluster's gateways show at other members' doors.
pub fn client_name(uid: &ClusterUid) -> String {
    format!("client.{}.fairlead.internal", uid_label(uid))
}

/// A cluster's UID as one DNS label. UIDs of namespaces are; whatever else a member reports is hashed,
/// so that two UIDs never share a certificate name.
fn uid_label(uid: &ClusterUid) -> String {
    if is_label(uid.as_str(), LABEL_LEN_MAX) {
        return uid.as_str().to_owned();
    }
    format!("u{}", hash(uid.as_str()))
}

fn dotted(parts: &[&str]) -> String {
    parts.join(".")
}

fn dotted_suffix(shard: &str) -> String {
    if shard.is_empty() { String::new() } else { format!(".{shard}") }
}

/// `name` and `suffix`, when they are shorter than `len_max` together; else cut to exactly that.
fn fit(name: &str, suffix: &str, len_max: usize) -> String {
    let whole = format!("{name}{suffix}");
    if whole.len() < len_max {
        return whole;
    }
    let keep = len_max.saturating_sub(HASH_LEN + 1 + suffix.len()).max(1);
    let mut head: String = name.chars().filter(char::is_ascii).take(keep).collect();
    // The separator must not follow another one; padding keeps the length exact.
    let trimmed = head.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).len();
    head.truncate(trimmed);
    while head.len() < keep {
        head.push('x');
    }
    format!("{head}-{}{suffix}", hash(name))
}

/// The start of the SHA-256 of a text, in lower-case hexadecimal digits.
pub(crate) fn hash(text: &str) -> String {
    let mut digits = hex(&Sha256::digest(text.as_bytes()));
    digits.truncate(HASH_LEN);
    digits
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use fairlead_model::plan::UsedFrom;
    use fairlead_model::{RouteKind, Way};

    use super::*;

    #[test]
    fn short_names_are_kept() {
        assert_eq!(route_mirror("cart"), "cart-global");
        assert_eq!(door_route(&NsName::new("shop", "cart"), ""), "shop.cart");
        assert_eq!(routes_grant("shop", "01"), "fairlead-routes.shop.01");
        assert_eq!(door_grant("1"), "fairlead-eastwest-1");
    }

    #[test]
    fn names_of_passages_are_labels_and_differ_by_what_they_stand_for() {
        let member = |name: &str| MemberId::new(name).unwrap();
        let mk = |from: &str, service: &str, port, way| Passage {
            service: NsName::new("shop", service),
            port,
            used_from: UsedFrom { kind: RouteKind::TCPRoute, namespace: from.to_owned() },
            app_protocol: String::new(),
            door_port: 15_444,
            lane: 0,
            way,
        };
        let base = passage(&member("east"), &mk("shop", "db", 5432, Way::Sni));
        assert!(base.starts_with("member--db-"), "{base}");
        for other in [
            passage(&member("west"), &mk("shop", "db", 5432, Way::Sni)),
            passage(&member("east"), &mk("bank", "db", 5432, Way::Sni)),
            passage(&member("east"), &mk("shop", "dc", 5432, Way::Sni)),
            passage(&member("east"), &mk("shop", "db", 5433, Way::Sni)),
            passage(&member("east"), &mk("shop", "db", 5432, Way::Port)),
            passage(&member("east"), &Passage { lane: 1, ..mk("shop", "db", 5432, Way::Sni) }),
        ] {
            assert_ne!(other, base);
        }
        let long = format!("{}-{}", "s".repeat(33), "t".repeat(29));
        let name = passage(&member(&"m".repeat(50)), &mk(&"n".repeat(63), &long, 1, Way::Sni));
        assert!(is_label(&name, LABEL_LEN_MAX), "{name}");
    }

    #[test]
    fn long_names_keep_their_end_and_the_greatest_length() {
        let long = format!("{}.{}", "a".repeat(125), "b".repeat(126));
        let name = route_mirror(&long);
        assert!(name.len() == SUBDOMAIN_LEN_MAX && name.ends_with("-global"), "{name}");
        assert_eq!(gateway_mirror(&"g".repeat(57)).len(), LABEL_LEN_MAX);
        assert!(gateway_mirror(&"g".repeat(55)).len() < LABEL_LEN_MAX);
    }

    #[test]
    fn long_names_that_differ_at_the_end_stay_apart() {
        let (one, two) = (format!("{}1", "a".repeat(100)), format!("{}2", "a".repeat(100)));
        assert_ne!(gateway_mirror(&one), gateway_mirror(&two));
    }

    #[test]
    fn nobody_can_choose_the_name_of_a_cut_one() {
        let cut = gateway_mirror(&"a".repeat(100));
        let literal = cut.strip_suffix(keys::GLOBAL_SUFFIX).unwrap();
        assert_ne!(gateway_mirror(literal), cut);
    }

    #[test]
    fn cut_never_leaves_a_separator_before_the_hash() {
        let name = gateway_mirror(&format!("{}...-{}", "a".repeat(33), "b".repeat(40)));
        assert!(!name.contains(".-") && name.len() == LABEL_LEN_MAX, "{name}");
    }

    #[test]
    fn shards_of_a_service_never_meet_another_service() {
        let shard = door_route(&NsName::new("shop", "cart"), "1");
        assert_ne!(shard, door_route(&NsName::new("shop", "cart-1"), ""));
        assert_ne!(routes_grant("shop", "1"), routes_grant("shop-1", ""));
    }

    #[test]
    fn certificate_names_are_host_names_for_any_uid() {
        let of = |uid: &str| server_name(&ClusterUid::new(uid).unwrap());
        assert_eq!(of("5b0c-1"), "door.5b0c-1.fairlead.internal");
        assert_ne!(of("ABC"), of("abc"));
        for uid in ["A_b", "a.b", "-", &"x".repeat(64)] {
            assert!(of(uid).split('.').all(|label| is_label(label, 63)), "{uid}");
        }
    }
}
