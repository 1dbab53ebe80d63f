//! Does the world see the names as they are published? What to ask a resolver, and what its answers come to.
//!
//! Old answers are kept by resolvers for a TTL, and resolvers fail for reasons of their own: only what has
//! been otherwise for longer than both can explain is told. Asking is not known here.
//!
//! ```text
//!  zones of the plan ──▶ questions ──(resolver)──▶ answers ──▶ judge ──▶ Visibility::hear ──▶ verdicts
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use fairlead_model::dns::{DnsName, DnsPolicy, Publish, Published, Zone};
use fairlead_model::snapshot::Address;
use fairlead_model::{Millis, NsName, Reason};

/// Names of one policy that are looked at: a delegation that is missing hides all of them.
const NAMES_MAX: usize = 5;
/// Policies that are looked at in one round.
const POLICIES_MAX: usize = 50;
/// How long a deviation is put down to caches and to resolvers, at least.
const PATIENCE_MIN_MS: u64 = 60_000;
/// The same at most.
const PATIENCE_MAX_MS: u64 = 900_000;
/// Stands for any name below a wildcard.
const PROBE_LABEL: &str = "fairlead-probe";

/// What to ask about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The policy that publishes it.
    pub policy: NsName,
    /// The name to ask for.
    pub name: DnsName,
    /// Addresses that may be answered; empty where another name stands in, then any will do.
    pub known: BTreeSet<IpAddr>,
    /// How long old answers may live, in milliseconds.
    pub patience_ms: u64,
}

impl Question {
    /// Whether to ask for IPv4; else for IPv6.
    pub fn is_v4(&self) -> bool {
        self.known.is_empty() || self.known.iter().any(IpAddr::is_ipv4)
    }
}

/// What a resolver said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses.
    Addresses(BTreeSet<IpAddr>),
    /// There is no such name, or it has no address.
    Nothing,
    /// No answer.
    Failed(String),
}

/// What is told of one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// None = not known.
    pub visible: Option<bool>,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// Verdicts by policy.
pub type Verdicts = BTreeMap<NsName, Verdict>;

/// Asks about some names of every policy: by members' zones, or by what one member writes for ExternalDNS.
pub fn questions(
    policies: &BTreeMap<NsName, Arc<DnsPolicy>>,
    zones: &BTreeMap<DnsName, Arc<Zone>>,
    published: &BTreeMap<NsName, &Published>,
) -> Vec<Question> {
    let mut all = Vec::new();
    for policy in policies.values().take(POLICIES_MAX) {
        match policy.publish {
            Publish::Authoritative => all.extend(of_zone(policy, zones.get(&policy.zone))),
            Publish::ExternalDns => all.extend(of_published(policy, published.get(&policy.name))),
        }
    }
    all
}

fn of_zone(policy: &DnsPolicy, zone: Option<&Arc<Zone>>) -> Vec<Question> {
    let sets = zone.into_iter().flat_map(|zone| &zone.sets);
    let own = sets.filter(|(_, set)| set.policy == policy.name);
    let asked = own.filter_map(|(name, set)| {
        let mut known: BTreeSet<IpAddr> = policy.answer.fallback.clone();
        for address in set.members.iter().flat_map(|member| &member.addresses) {
            match address {
                Address::Ip(ip) => drop(known.insert(*ip)),
                Address::Name(_) => return question(policy, name, BTreeSet::new()),
            }
        }
        question(policy, name, known)
    });
    asked.take(NAMES_MAX).collect()
}

fn of_published(policy: &DnsPolicy, published: Option<&&Published>) -> Vec<Question> {
    let sets = published.into_iter().flat_map(|published| published.iter());
    sets.filter_map(|(name, set)| question(policy, name, set.addresses.clone()))
        .take(NAMES_MAX)
        .collect()
}

fn question(policy: &DnsPolicy, name: &DnsName, known: BTreeSet<IpAddr>) -> Option<Question> {
    let name = match name.as_str().strip_prefix("*.") {
        Some(parent) => DnsName::new(&format!("{PROBE_LABEL}.{parent}")).ok()?,
        None => name.clone(),
    };
    let ttl_s = policy.answer.ttl_s.max(policy.negative_ttl_s);
    let patience = u64::from(ttl_s).saturating_mul(2_000);
    let patience_ms = patience.clamp(PATIENCE_MIN_MS, PATIENCE_MAX_MS);
    Some(Question { policy: policy.name.clone(), name, known, patience_ms })
}

/// What one round found of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    verdict: Verdict,
    patience_ms: u64,
}

/// The first name that is not as published speaks for its policy; a failure only if no name says more.
fn judge(answers: &[(Question, Answer)]) -> BTreeMap<NsName, Found> {
    let mut all: BTreeMap<NsName, (usize, Option<String>, Option<String>, u64)> = BTreeMap::new();
    for (question, answer) in answers {
        let found = all.entry(question.policy.clone()).or_default();
        found.0 += 1;
        found.3 = found.3.max(question.patience_ms);
        let name = &question.name;
        match answer {
            Answer::Addresses(ips) => {
                let foreign = ips.iter().find(|ip| !question.known.contains(ip));
                if let Some(ip) = foreign.filter(|_| !question.known.is_empty()) {
                    found.1.get_or_insert(format!(
                        "{name} is answered with {ip}, which is no member's"
                    ));
                }
            }
            Answer::Nothing => {
                found.1.get_or_insert(format!("a resolver does not find {name}"));
            }
            Answer::Failed(why) => drop(found.2.get_or_insert(format!("{name}: {why}"))),
        }
    }
    let verdict =
        |(asked, wrong, failed, patience_ms): (usize, Option<String>, Option<String>, u64)| {
            let verdict = match (wrong, failed) {
                (Some(wrong), _) => {
                    Verdict { visible: Some(false), reason: Reason::NotVisible, message: wrong }
                }
                (None, Some(failed)) => {
                    Verdict { visible: None, reason: Reason::ResolverFailed, message: failed }
                }
                (None, None) => Verdict {
                    visible: Some(true),
                    reason: Reason::AsAsked,
                    message: format!("a resolver answers {asked} names as they are published"),
                },
            };
            Found { verdict, patience_ms }
        };
    all.into_iter().map(|(policy, found)| (policy, verdict(found))).collect()
}

/// What is told, round after round.
#[derive(Debug, Default)]
pub struct Visibility {
    policies: BTreeMap<NsName, Told>,
}

#[derive(Debug)]
struct Told {
    verdict: Verdict,
    /// Since when it has not been as published.
    otherwise_since: Option<Millis>,
}

impl Visibility {
    /// Takes the answers of one round. A policy that was not asked about is forgotten.
    pub fn hear(&mut self, answers: &[(Question, Answer)], now: Millis) {
        let found = judge(answers);
        self.policies.retain(|policy, _| found.contains_key(policy));
        for (policy, Found { verdict, patience_ms }) in found {
            let told = self.policies.entry(policy).or_insert_with(|| Told {
                verdict: Verdict {
                    visible: None,
                    reason: Reason::NotVisible,
                    message: format!("not yet: {}", verdict.message),
                },
                otherwise_since: None,
            });
            if verdict.visible == Some(true) {
                *told = Told { verdict, otherwise_since: None };
                continue;
            }
            let since = *told.otherwise_since.get_or_insert(now);
            if now.since(since) >= patience_ms {
                told.verdict = verdict;
            }
        }
    }

    /// What is told.
    pub fn verdicts(&self) -> Verdicts {
        self.policies.iter().map(|(policy, told)| (policy.clone(), told.verdict.clone())).collect()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use fairlead_model::MemberId;
    use fairlead_model::dns::{AnswerPolicy, Delegation, MemberRecord, PublishedSet, RecordSet};

    fn name(text: &str) -> DnsName {
        DnsName::new(text).unwrap()
    }

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn policy(publish: Publish) -> DnsPolicy {
        DnsPolicy {
            name: NsName::new("infra", "names"),
            created_at: Millis(0),
            zone: name("example.com"),
            targets: BTreeSet::new(),
            answer: Arc::new(AnswerPolicy { ttl_s: 40, ..AnswerPolicy::default() }),
            negative_ttl_s: 20,
            publish,
            delegation: Delegation::Manual,
            weights: None,
            tiers: Vec::new(),
            name_servers: BTreeSet::new(),
        }
    }

    fn zone(sets: &[(&str, &[&str])]) -> BTreeMap<DnsName, Arc<Zone>> {
        let set = |(at, addresses): &(&str, &[&str])| {
            let member = MemberRecord {
                member: MemberId::new("east").unwrap(),
                addresses: addresses.iter().map(|text| Address::of(text)).collect(),
                weight: 1,
                tier: 0,
                region: None,
                out: None,
            };
            (
                name(at),
                RecordSet { policy: policy(Publish::Authoritative).name, members: vec![member] },
            )
        };
        let zone = Zone { sets: sets.iter().map(set).collect(), ..Zone::default() };
        [(name("example.com"), Arc::new(zone))].into()
    }

    fn policies(publish: Publish) -> BTreeMap<NsName, Arc<DnsPolicy>> {
        let policy = policy(publish);
        [(policy.name.clone(), Arc::new(policy))].into()
    }

    #[test]
    fn names_are_asked_for_as_they_are_published() {
        let zones = zone(&[
            ("*.example.com", &["192.0.2.1"]),
            ("alias.example.com", &["lb.example.net", "192.0.2.1"]),
            ("six.example.com", &["2001:db8::1"]),
        ]);
        let asked = questions(&policies(Publish::Authoritative), &zones, &BTreeMap::new());
        let found: Vec<_> =
            asked.iter().map(|q| (q.name.as_str(), q.known.clone(), q.is_v4())).collect();
        let wanted = [
            ("fairlead-probe.example.com", ips(&["192.0.2.1"]), true),
            ("alias.example.com", ips(&[]), true),
            ("six.example.com", ips(&["2001:db8::1"]), false),
        ];
        assert_eq!(found, wanted);
        assert_eq!(asked[0].patience_ms, 80_000, "twice the longer TTL");
    }

    #[test]
    fn with_external_dns_it_is_what_the_publisher_writes() {
        let set =
            PublishedSet { ttl_s: 30, addresses: ips(&["192.0.2.7"]), ..PublishedSet::default() };
        let published: Published = [(name("www.example.com"), set)].into();
        let by_policy = [(NsName::new("infra", "names"), &published)].into();
        let asked = questions(&policies(Publish::ExternalDns), &BTreeMap::new(), &by_policy);
        assert_eq!((asked.len(), &asked[0].known), (1, &ips(&["192.0.2.7"])));
    }

    #[test]
    fn a_few_names_speak_for_a_policy() {
        let names: Vec<String> = (0..100).map(|n| format!("n{n}.example.com")).collect();
        let sets: Vec<(&str, &[&str])> =
            names.iter().map(|name| (name.as_str(), &["192.0.2.1"][..])).collect();
        let asked = questions(&policies(Publish::Authoritative), &zone(&sets), &BTreeMap::new());
        assert_eq!(asked.len(), NAMES_MAX);
    }

    fn asked(known: &[&str], answer: Answer) -> Vec<(Question, Answer)> {
        let question = Question {
            policy: NsName::new("infra", "names"),
            name: name("www.example.com"),
            known: ips(known),
            patience_ms: 60_000,
        };
        vec![(question, answer)]
    }

    /// Says answers at times in seconds; what is told in the end.
    fn after(rounds: &[(u64, Answer)]) -> (Option<bool>, Reason) {
        let mut visibility = Visibility::default();
        for (second, answer) in rounds {
            let answers = asked(&["192.0.2.1", "192.0.2.2"], answer.clone());
            visibility.hear(&answers, Millis(second * 1_000));
        }
        let verdicts = visibility.verdicts();
        let verdict = verdicts.values().next().unwrap();
        (verdict.visible, verdict.reason)
    }

    /// Answers with their seconds.
    type Rounds = Vec<(u64, Answer)>;
    type Told = (Option<bool>, Reason);

    #[test]
    fn only_what_lasts_is_told() {
        let good = || Answer::Addresses(ips(&["192.0.2.2"]));
        let foreign = || Answer::Addresses(ips(&["192.0.2.2", "198.51.100.9"]));
        let failed = || Answer::Failed("timed out".to_owned());
        let (yes, no, unknown) = (
            (Some(true), Reason::AsAsked),
            (Some(false), Reason::NotVisible),
            (None, Reason::ResolverFailed),
        );
        let not_yet = (None, Reason::NotVisible);
        let cases: Vec<(&str, Rounds, Told)> = vec![
            ("as published", vec![(0, good())], yes),
            ("not there yet", vec![(0, Answer::Nothing)], not_yet),
            ("not there for long", vec![(0, Answer::Nothing), (60, Answer::Nothing)], no),
            ("an old answer in a cache", vec![(0, good()), (60, foreign()), (119, foreign())], yes),
            (
                "an answer that never was ours",
                vec![(0, good()), (60, foreign()), (120, foreign())],
                no,
            ),
            ("a resolver that hiccups", vec![(0, good()), (60, failed())], yes),
            (
                "a resolver that is gone",
                vec![(0, good()), (60, failed()), (120, failed())],
                unknown,
            ),
            ("and is back", vec![(0, failed()), (60, failed()), (120, good())], yes),
            (
                "patience begins anew",
                vec![(0, foreign()), (30, good()), (60, foreign()), (90, foreign())],
                yes,
            ),
        ];
        for (what, rounds, wanted) in cases {
            assert_eq!(after(&rounds), wanted, "{what}");
        }
    }

    #[test]
    fn behind_an_alias_any_address_will_do() {
        let mut visibility = Visibility::default();
        let answers = asked(&[], Answer::Addresses(ips(&["203.0.113.1"])));
        visibility.hear(&answers, Millis(0));
        assert_eq!(visibility.verdicts().values().next().unwrap().visible, Some(true));
        visibility.hear(&[], Millis(1));
        assert!(visibility.verdicts().is_empty(), "nobody asks for it any more");
    }
}
