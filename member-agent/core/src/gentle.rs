//! Backends come into a rule, and leave it, by way of a share of next to nothing.
//!
//! Gateways keep backends of weight 0 out of their proxies (Envoy Gateway does). So with the write
//! that gives a first share, the proxy may know the route before the backend, and with the write
//! that takes the last one, the other way round: requests between the two fail. Therefore a change
//! is made in two writes, with a trickle of the traffic in between until the gateway has taken the
//! first. A failover never waits for that, and neither does consent: a backend that is no longer
//! named goes at once.
//!
//! ```text
//!  0 ──▶ trickle ──taken, and settled──▶ share          share ──▶ trickle ──the same──▶ 0
//! ```

use std::collections::{BTreeMap, BTreeSet};

use fairlead_model::{Json, Millis, ObjectId};

use crate::live::LiveObject;
use crate::overlay::{refs_of, target_of, weight_of};

/// The share of next to nothing, beside [`WHOLE`] of the largest backend.
const TRICKLE: u32 = 1;
/// The Gateway API's largest weight.
const WHOLE: u32 = 1_000_000;
/// Less than that part of a rule is a trickle.
const TRICKLE_PART: u64 = 100_000;
/// From the gateway's word that it has taken a route until its proxies surely have it.
const SETTLE_MS: u64 = 500;
/// A gateway that says nothing holds nothing up for longer.
const SILENCE_MS: u64 = 5_000;

/// Which backends are on their way in or out, by object.
#[derive(Debug, Default)]
pub struct Gentle {
    stays: BTreeMap<ObjectId, BTreeMap<Place, Stay>>,
}

/// A rule, and a backend of it.
type Place = (u16, String);

/// How long a backend has its trickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stay {
    since: Millis,
    taken: Option<Millis>,
}

impl Stay {
    fn ends_at(self) -> Millis {
        let silent = self.since.plus(SILENCE_MS);
        self.taken.map_or(silent, |taken| taken.plus(SETTLE_MS).min(silent))
    }
}

/// A route that is about to be written.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// Which.
    pub id: &'a ObjectId,
    /// What is wanted in the end.
    pub wanted: &'a Json,
    /// What is there, ours.
    pub live: &'a LiveObject,
    /// Whether the gateway has taken what is there.
    pub taken: bool,
    /// Whether peers are out of it: what is taken from them cannot wait.
    pub failover: bool,
}

impl Gentle {
    /// Nothing is on its way, and what is there has the wanted backends with the wanted weights: true
    /// of nearly every route in nearly every pass, so it comes before everything that costs.
    pub fn is_at_rest(&self, id: &ObjectId, wanted: &Json, live: &LiveObject) -> bool {
        let rules = wanted.pointer("/spec/rules").and_then(Json::as_array).map_or(0, Vec::len);
        let same = |rule| match (refs_of(wanted, rule), refs_of(&live.content, rule)) {
            (Some(a), Some(b)) => {
                let same = |(a, b)| weight_of(a) == weight_of(b) && target_of(a) == target_of(b);
                a.len() == b.len() && a.iter().zip(b).all(same)
            }
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        !self.stays.contains_key(id) && (0..rules).filter_map(|at| u16::try_from(at).ok()).all(same)
    }

    /// What to write now instead of what is wanted in the end; none = just that.
    pub fn step(&mut self, now: Millis, change: &Change<'_>) -> Option<Json> {
        let before = self.stays.remove(change.id).unwrap_or_default();
        let rules = change.wanted.pointer("/spec/rules").and_then(Json::as_array)?;
        let mut content: Option<Json> = None;
        let mut stays = BTreeMap::new();
        for rule in (0..rules.len()).filter_map(|at| u16::try_from(at).ok()) {
            let Some(weights) = rule_step(now, change, rule, &before, &mut stays) else { continue };
            let content = content.get_or_insert_with(|| change.wanted.clone());
            put_weights(content, rule, &weights);
        }
        if !stays.is_empty() {
            self.stays.insert(change.id.clone(), stays);
        }
        content
    }

    /// Forgets objects that are wanted no more.
    pub fn retain(&mut self, wanted: impl Fn(&ObjectId) -> bool) {
        self.stays.retain(|id, _| wanted(id));
    }

    /// When time alone changes what is to be written.
    pub fn wake_at(&self, now: Millis) -> Option<Millis> {
        let stays = self.stays.values().flat_map(BTreeMap::values);
        stays.map(|stay| stay.ends_at()).filter(|end| *end > now).min()
    }

    /// Routes with something on its way.
    pub fn under_way(&self) -> usize {
        self.stays.len()
    }
}

/// The weights of one rule on its way; none = as wanted.
fn rule_step(
    now: Millis,
    change: &Change<'_>,
    rule: u16,
    before: &BTreeMap<Place, Stay>,
    stays: &mut BTreeMap<Place, Stay>,
) -> Option<Vec<u32>> {
    let live = Shares::of(refs_of(&change.live.content, rule)?);
    let refs = refs_of(change.wanted, rule)?;
    let wanted = Shares::of(refs);
    let is_leaving = |key: &String| live.is_real(key) && wanted.weight(key) == 0;
    if change.failover && live.0.keys().any(is_leaving) {
        return None;
    }
    let keys: Vec<String> = refs.iter().map(key_of).collect();
    let stays_on = keys.iter().zip(refs).filter(|(k, _)| live.is_real(k) && wanted.is_real(k));
    let most = stays_on.map(|(_, backend)| weight_of(backend)).max()?.max(1);
    let mut held = BTreeSet::new();
    for key in &keys {
        let enters = wanted.is_real(key) && !live.is_real(key);
        let leaves = wanted.weight(key) == 0 && live.weight(key) > 0;
        if !(enters || leaves) {
            continue;
        }
        let place = (rule, key.clone());
        let stay = match before.get(&place) {
            Some(stay) if live.is_trickle(key) => *stay,
            // The trickle is not written yet.
            Some(_) | None => Stay { since: now, taken: None },
        };
        let taken = stay.taken.or((live.is_trickle(key) && change.taken).then_some(now));
        let stay = Stay { taken, ..stay };
        if now < stay.ends_at() {
            held.insert(key);
        }
        stays.insert(place, stay);
    }
    let scaled = |backend: &Json| {
        let weight = u64::from(weight_of(backend)) * u64::from(WHOLE) / u64::from(most);
        u32::try_from(weight).unwrap_or(WHOLE).min(WHOLE)
    };
    let weight = |(key, backend)| if held.contains(&key) { TRICKLE } else { scaled(backend) };
    (!held.is_empty()).then(|| keys.iter().zip(refs).map(weight).collect())
}

/// Weights of one rule by backend.
struct Shares(BTreeMap<String, u64>);

impl Shares {
    fn of(refs: &[Json]) -> Self {
        let mut shares = BTreeMap::new();
        for backend in refs {
            *shares.entry(key_of(backend)).or_default() += u64::from(weight_of(backend));
        }
        Self(shares)
    }

    fn weight(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or(0)
    }

    fn is_trickle(&self, key: &str) -> bool {
        let (weight, all) = (self.weight(key), self.0.values().sum::<u64>());
        weight > 0 && weight.saturating_mul(TRICKLE_PART) < all
    }

    fn is_real(&self, key: &str) -> bool {
        self.weight(key) > 0 && !self.is_trickle(key)
    }
}

/// What a backendRef names, as text.
fn key_of(backend: &Json) -> String {
    let part = |part: Option<&Json>| part.map(Json::to_string).unwrap_or_default();
    target_of(backend).map(part).join(" ")
}

fn put_weights(content: &mut Json, rule: u16, weights: &[u32]) {
    let pointer = format!("/spec/rules/{rule}/backendRefs");
    let refs = content.pointer_mut(&pointer).and_then(Json::as_array_mut).into_iter().flatten();
    for (backend, weight) in refs.zip(weights) {
        if let Some(fields) = backend.as_object_mut() {
            fields.insert("weight".to_owned(), (*weight).into());
        }
    }
}

#[cfg(test)]
#[path = "gentle_tests.rs"]
mod tests;
