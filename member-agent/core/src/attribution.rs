//! What a gateway's span means: which global route, rule and backend it served, and who answered.
//!
//! Owns the reading of names that gateways give to what they send to. Everything is looked up in what
//! the plan says; a name that the plan does not know stays unattributed, so labels made from the
//! result are bounded by the plan.
//!
//! ```text
//!  Envoy    KIND/NS/ROUTE/rule/I/backend/J           position J of rule I → slot → backend, member
//!  Traefik  KIND-NS-ROUTE-…-I-HASH@…, NS-SERVICE-http-PORT@… or …-svc-NS-SERVICE-J@…
//!  both     address of the upstream                  a peer's door → that member, whatever the name says
//! ```
//!
//! KIND is the route's in lower case: `httproute`, `grpcroute`. At doors it is `httproute` for gRPC too:
//! a door tells services apart by a header, whatever runs over it.
//!
//! The address wins over the position: a span may be older than the plan, but nobody else has that
//! peer's address.

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::bundle::{Bundle, RuleId};
use fairlead_model::recipe::{Recipe, Serve};
use fairlead_model::snapshot::Address;
use fairlead_model::{Json, MemberId, NsName, ObjectId, PlanNumber};

/// Namespace of our own objects.
const NAMESPACE: &str = "fairlead-system";
/// Start of the name of a Service that stands for a remote member.
const PEER_PREFIX: &str = "member-";
/// Annotation with `<kind>/<namespace>/<name>` of the hub's object.
const MIRROR_OF: &str = "/metadata/annotations/fairlead.dev~1mirror-of";

/// What a gateway said of a request that it sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hint<'a> {
    /// Envoy's name of the upstream (`upstream_cluster.name`).
    pub upstream: Option<&'a str>,
    /// Traefik's router (`traefik.router.name`).
    pub router: Option<&'a str>,
    /// Traefik's service (`traefik.service.name`).
    pub service: Option<&'a str>,
    /// Where the request went, as `ip:port`.
    pub address: Option<&'a str>,
}

/// On which side of a crossing a gateway stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// A client's request came to it.
    Entry,
    /// Another member's gateway sent it.
    Door,
}

impl Hop {
    /// As an attribute's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Entry => "entry",
            Self::Door => "door",
        }
    }
}

/// What a span is about. Borrowed from the [`Atlas`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning<'a> {
    /// Which side.
    pub hop: Hop,
    /// `kind/namespace/name` of the global route; none at a door, which serves many.
    pub route: Option<&'a str>,
    /// Index of the rule in the rendered route.
    pub rule: Option<u16>,
    /// `namespace/name:port` of the backend.
    pub backend: Option<&'a str>,
    /// Who answers; none when the gateway chose nobody.
    pub target: Option<&'a MemberId>,
    /// Tier of the target in the plan, from 1.
    pub tier: Option<u16>,
    /// The rule's weights are not the plan's at present.
    pub overlay: bool,
}

/// What the plan knows, by the names that gateways use.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Atlas {
    /// This member.
    pub member: Option<MemberId>,
    /// The plan.
    pub plan: PlanNumber,
    routes: BTreeMap<String, Route>,
    traefik: Vec<(String, String)>,
    doors: BTreeMap<String, MemberId>,
    peers: BTreeSet<MemberId>,
}

#[derive(Debug, Clone, PartialEq)]
struct Route {
    hop: Hop,
    global: Option<String>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Rule {
    slots: Vec<Slot>,
    overlay: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Slot {
    backend: Option<String>,
    target: Option<MemberId>,
    tier: Option<u16>,
}

impl Atlas {
    /// Reads a bundle. `out` are the members that the overlay has taken out of this entry's routes.
    pub fn of(member: &MemberId, bundle: &Bundle, out: &BTreeSet<MemberId>) -> Self {
        let mut atlas = Self {
            member: Some(member.clone()),
            plan: bundle.number,
            peers: bundle.peers.keys().cloned().collect(),
            ..Self::default()
        };
        for (peer, door) in &bundle.peers {
            for address in &door.addresses {
                // Names are resolved by the gateway; what it says then is not known here.
                let Address::Ip(ip) = address else { continue };
                let socket = std::net::SocketAddr::new(*ip, door.port);
                atlas.doors.insert(socket.to_string(), peer.clone());
            }
        }
        for (id, object) in &bundle.objects {
            if id.kind.ends_with("Route") {
                atlas.add_route(id, &object.content, bundle, out);
            }
        }
        // The longest prefix first: `shop-cart` must not take the spans of `shop-cart-v2`.
        atlas.traefik.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
        atlas
    }

    fn add_route(
        &mut self,
        id: &ObjectId,
        content: &Json,
        bundle: &Bundle,
        out: &BTreeSet<MemberId>,
    ) {
        let global = content.pointer(MIRROR_OF).and_then(Json::as_str).map(str::to_owned);
        let hop = if global.is_some() { Hop::Entry } else { Hop::Door };
        let rules = content.pointer("/spec/rules").and_then(Json::as_array);
        let rules = (0u16..).zip(rules.into_iter().flatten()).map(|(at, rule)| {
            let recipe = bundle.recipes.get(&RuleId { object: id.clone(), rule: at });
            self.rule_of(&id.namespace, rule, recipe, out)
        });
        let route = Route { hop, global, rules: rules.collect() };
        let kind = id.kind.to_ascii_lowercase();
        let name = format!("{kind}/{}/{}", id.namespace, id.name);
        self.traefik.push((format!("{kind}-{}-{}-", id.namespace, id.name), name.clone()));
        self.routes.insert(name, route);
    }

    fn rule_of(
        &self,
        namespace: &str,
        rule: &Json,
        recipe: Option<&Recipe>,
        out: &BTreeSet<MemberId>,
    ) -> Rule {
        let refs = rule.get("backendRefs").and_then(Json::as_array);
        let refs = refs.into_iter().flatten();
        let mut slots: Vec<Slot> = refs.map(|backend| self.slot_of(namespace, backend)).collect();
        let overlay = recipe.is_some_and(|recipe| fill(&mut slots, recipe, out));
        Rule { slots, overlay }
    }

    /// What a backendRef alone says.
    fn slot_of(&self, namespace: &str, backend: &Json) -> Slot {
        let text = |key: &str| backend.get(key).and_then(Json::as_str);
        let name = text("name").unwrap_or_default();
        let at = text("namespace").unwrap_or(namespace);
        let peer = name.strip_prefix(PEER_PREFIX).filter(|_| at == NAMESPACE);
        let peer = peer.and_then(|name| MemberId::new(name).ok());
        if let Some(peer) = peer.filter(|peer| self.peers.contains(peer)) {
            return Slot { backend: None, target: Some(peer), tier: None };
        }
        let port = backend.get("port").and_then(Json::as_u64).unwrap_or_default();
        let backend = (!name.is_empty()).then(|| format!("{at}/{name}:{port}"));
        Slot { backend, target: self.member.clone(), tier: None }
    }

    /// What a span is about; none when it is about nothing of ours.
    pub fn meaning(&self, hint: &Hint<'_>) -> Option<Meaning<'_>> {
        let (route, place) = match (hint.upstream, hint.router) {
            (Some(upstream), _) => (self.envoy_route(upstream), place_of(upstream)),
            (None, Some(router)) => (self.traefik_route(router), None),
            (None, None) => (None, None),
        };
        let door = hint.address.and_then(|address| self.doors.get(address));
        let named = hint.service.and_then(|service| self.traefik_peer(service));
        let Some(route) = route else {
            // A peer's door alone says who answers.
            let target = door.or(named)?;
            return Some(Meaning { target: Some(target), ..Meaning::of(Hop::Entry) });
        };
        let at_door = Meaning::of(route.hop);
        let mut meaning = Meaning { route: route.global.as_deref(), ..at_door };
        let (rule, slot) = match place {
            Some((rule, slot)) => (Some(rule), slot),
            None => (only(route.rules.len()), None),
        };
        meaning.rule = rule;
        let rule = rule.and_then(|rule| route.rules.get(usize::from(rule)));
        meaning.overlay = rule.is_some_and(|rule| rule.overlay);
        let slot = rule.and_then(|rule| {
            let by_place = slot.and_then(|slot| rule.slots.get(usize::from(slot)));
            match door.or(named) {
                Some(peer) => {
                    let fits = |slot: &&Slot| slot.target.as_ref() == Some(peer);
                    by_place.filter(fits).or_else(|| unique(rule, peer))
                }
                None => by_place.or_else(|| self.local_slot(rule, hint)),
            }
        });
        if let Some(slot) = slot {
            meaning.backend = slot.backend.as_deref();
            meaning.target = slot.target.as_ref();
            meaning.tier = slot.tier;
        }
        meaning.target = door.or(named).or(meaning.target);
        Some(meaning)
    }

    fn envoy_route(&self, upstream: &str) -> Option<&Route> {
        let (name, _) = upstream.split_once("/rule/")?;
        self.routes.get(name)
    }

    fn traefik_route(&self, router: &str) -> Option<&Route> {
        let known = self.traefik.iter().find(|(prefix, _)| router.starts_with(prefix.as_str()))?;
        self.routes.get(&known.1)
    }

    fn traefik_peer(&self, service: &str) -> Option<&MemberId> {
        // Newer versions put the router in front, and the position in place of the port.
        let own = service.split_once("-svc-").map_or(service, |(_, own)| own);
        let rest = own.strip_prefix(NAMESPACE)?.strip_prefix('-')?.strip_prefix(PEER_PREFIX)?;
        let (name, _) = rest.rsplit_once("-http-").or_else(|| rest.rsplit_once('-'))?;
        self.peers.iter().find(|peer| peer.as_str() == name)
    }

    /// A request that went to no door went to this cluster, if an address is known at all.
    fn local_slot<'a>(&self, rule: &'a Rule, hint: &Hint<'_>) -> Option<&'a Slot> {
        hint.address?;
        unique(rule, self.member.as_ref()?)
    }
}

impl Meaning<'_> {
    fn of(hop: Hop) -> Self {
        Self {
            hop,
            route: None,
            rule: None,
            backend: None,
            target: None,
            tier: None,
            overlay: false,
        }
    }
}

/// The one slot that leads to a member; with several backends there may be more, and no way to tell.
fn unique<'a>(rule: &'a Rule, member: &MemberId) -> Option<&'a Slot> {
    let mut slots = rule.slots.iter().filter(|slot| slot.target.as_ref() == Some(member));
    slots.next().filter(|_| slots.next().is_none())
}

fn only(rules: usize) -> Option<u16> {
    (rules == 1).then_some(0)
}

/// `…/rule/I/backend/J` → I and J; `…/rule/I` → I alone.
fn place_of(upstream: &str) -> Option<(u16, Option<u16>)> {
    let (_, place) = upstream.split_once("/rule/")?;
    let mut parts = place.split('/');
    let rule = parts.next()?.parse().ok()?;
    let slot = match parts.next() {
        Some("backend") => parts.next().and_then(|slot| slot.parse().ok()),
        _ => None,
    };
    Some((rule, slot))
}

/// Adds what the recipe knows of the slots; true when the overlay touches one of them.
fn fill(slots: &mut [Slot], recipe: &Recipe, out: &BTreeSet<MemberId>) -> bool {
    let mut overlay = false;
    for backend in &recipe.backends {
        let Serve::Members { service, port, tiers, .. } = &backend.serve else { continue };
        for (tier, candidates) in (1u16..).zip(tiers.iter().map(|tier| &tier.candidates)) {
            for candidate in candidates {
                overlay |= out.contains(&candidate.member);
                let Some(slot) = slots.get_mut(usize::from(candidate.slot)) else { continue };
                slot.backend = Some(name_of(service, *port));
                slot.target = Some(candidate.member.clone());
                slot.tier = Some(tier);
            }
        }
    }
    overlay
}

fn name_of(service: &NsName, port: u16) -> String {
    format!("{service}:{port}")
}

#[cfg(test)]
#[path = "attribution_tests.rs"]
mod tests;
