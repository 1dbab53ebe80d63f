//! Status of DNSPolicies.

use fairlead_crds::keys;
use fairlead_model::dns::NameServer;
use fairlead_model::{Json, MemberId, Note, Reason};

use super::condition::{Stamp, Wanted, conditions};
use super::{NAMED_MAX, base};
use crate::ingest::hub::DnsVerdict;
use crate::raw;

/// What is published of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsFacts {
    /// Names that are answered.
    pub names: usize,
    /// Names that are not, and why.
    pub refused: Vec<Note>,
    /// What else stands in the way.
    pub notes: Vec<Note>,
    /// Who writes for ExternalDNS, where that publishes.
    pub publisher: Option<MemberId>,
    /// Servers of its zone.
    pub servers: Vec<NameServer>,
    /// Whether the world sees it; none = nobody looks.
    pub visible: Option<Visible>,
}

/// Whether the world sees what is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visible {
    /// None = not known.
    pub status: Option<bool>,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// Status of a DNSPolicy; without facts it acts on nothing.
pub fn dns_policy_status(
    existing: &Json,
    verdict: &DnsVerdict,
    facts: Option<&DnsFacts>,
    now: &str,
) -> Json {
    let mut accepted = Wanted::of(keys::CONDITION_ACCEPTED, "Accepted", &verdict.accepted);
    // GEP-713 knows Accepted, Conflicted, Invalid and TargetNotFound.
    if accepted.reason == Reason::Unreadable.as_str() {
        accepted.reason = "Invalid".to_owned();
    }
    let mut wanted = vec![accepted];
    wanted.extend(facts.map(served));
    wanted.extend(facts.and_then(|facts| facts.visible.as_ref()).map(visible));
    let ours = [keys::CONDITION_ACCEPTED, keys::CONDITION_SERVED, keys::CONDITION_DNS_VISIBLE];
    let stamp = Stamp { generation: verdict.generation, now };
    let mut status = base(existing);
    status["conditions"] = conditions(raw::list(existing, "/conditions"), &ours, wanted, stamp);
    let nothing = DnsFacts::default();
    let facts = facts.unwrap_or(&nothing);
    status["names"] = i32::try_from(facts.names).unwrap_or(i32::MAX).into();
    status["nameServers"] = facts.servers.iter().map(server).collect::<Vec<_>>().into();
    status
}

fn visible(visible: &Visible) -> Wanted {
    let status = match visible.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    Wanted::new(keys::CONDITION_DNS_VISIBLE, status, visible.reason, visible.message.clone())
}

/// `ns-east.example.com 192.0.2.1 2001:db8::1`: what the parent zone has to say.
fn server(server: &NameServer) -> String {
    let addresses = server.addresses.iter().map(|ip| format!(" {ip}"));
    format!("{}{}", server.name, addresses.collect::<String>()).chars().take(1_024).collect()
}

fn served(facts: &DnsFacts) -> Wanted {
    let all: Vec<&Note> = facts.notes.iter().chain(&facts.refused).collect();
    let by = match (&facts.publisher, facts.servers.is_empty()) {
        (None, _) => String::new(),
        (Some(id), true) => format!(" through {id}"),
        // Agents answer themselves: what is written is for the parent zone.
        (Some(id), false) => format!("; {id} writes the delegation"),
    };
    let Some(first) = all.first() else {
        let message = format!("{} names are answered{by}", facts.names);
        return Wanted::new(keys::CONDITION_SERVED, "True", Reason::AsAsked, message);
    };
    let named: Vec<String> = all.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    let mut message = format!("{} names are answered; {}", facts.names, named.join("; "));
    let more = all.len().saturating_sub(NAMED_MAX);
    if more > 0 {
        message.push_str(&format!(" and {more} more"));
    }
    Wanted::new(keys::CONDITION_SERVED, "False", first.reason, message)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn served_says_who_writes_what() {
        let server = NameServer {
            name: fairlead_model::dns::DnsName::new("ns-east.example.com").unwrap(),
            addresses: [].into(),
        };
        let publisher = MemberId::new("west").ok();
        let published = DnsFacts { names: 1, publisher, ..DnsFacts::default() };
        let delegated = DnsFacts { servers: vec![server], ..published.clone() };
        let said = |facts: &DnsFacts| served(facts).message;
        assert_eq!(said(&DnsFacts::default()), "0 names are answered");
        assert_eq!(said(&published), "1 names are answered through west");
        assert_eq!(said(&delegated), "1 names are answered; west writes the delegation");
    }

    #[test]
    fn what_the_world_sees_is_a_condition_while_somebody_looks() {
        let verdict = DnsVerdict { generation: 3, accepted: Default::default() };
        let status = |existing: &Json, looked: Option<Option<bool>>| {
            let visible = looked.map(|status| Visible {
                status,
                reason: Reason::NotVisible,
                message: "why".to_owned(),
            });
            let facts = DnsFacts { names: 1, visible, ..DnsFacts::default() };
            dns_policy_status(existing, &verdict, Some(&facts), "2026-01-01T00:00:00Z")
        };
        let of = |status: &Json| {
            let conditions = status["conditions"].as_array().unwrap();
            let found = conditions.iter().find(|c| c["type"] == keys::CONDITION_DNS_VISIBLE);
            found.map(|c| (c["status"].as_str().unwrap().to_owned(), c["message"].clone()))
        };
        for (looked, said) in [(Some(true), "True"), (Some(false), "False"), (None, "Unknown")] {
            let told = status(&Json::Null, Some(looked));
            assert_eq!(of(&told), Some((said.to_owned(), "why".into())));
            assert_eq!(of(&status(&told, None)), None, "nobody looks any more");
        }
    }
}
