//! Tells a member whose crossing CA changes who does not hold it yet.
//!
//! The member changes its CA itself (its key never leaves it); only the hub sees who else needs it. A
//! member holds a CA when its plan carries that text and its agent has written all of that plan. Decides
//! nothing: the member takes its next step by its own machine (`fairlead_model::rotation`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_crds::keys;
use fairlead_model::bundle::CrossingCa;
use fairlead_model::session::{ApplyReport, CrossingHeld, MISSING_MAX};
use fairlead_model::{MemberId, ObjectId};
use sha2::{Digest as _, Sha256};

use crate::conductor::Current;
use crate::fleet::{Fleet, MemberNow};

/// How often members are looked at; an agent that changes its CA is told of differences only.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Tells for ever.
pub async fn tell_crossings(fleet: Arc<Fleet>, current: Arc<ArcSwap<Current>>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let members = fleet.look();
        let plans = cas_of(&current.load());
        for (member, now) in &members {
            let held = changing(now).map(|pem| held(member, pem, &members, &plans));
            fleet.tell_crossing(member, held);
        }
    }
}

/// The text of its CA, while there are two.
fn changing(now: &MemberNow) -> Option<&str> {
    let pem = now.report.as_ref()?.snapshot.door.ca_pem.as_deref()?;
    (pem.matches("-----BEGIN CERTIFICATE-----").count() > 1).then_some(pem)
}

/// The CAs that each member's plan carries.
type Plans = BTreeMap<MemberId, BTreeMap<MemberId, CrossingCa>>;

fn cas_of(current: &Current) -> Plans {
    let rendered = current.rendered.iter();
    rendered.map(|(member, rendered)| (member.clone(), rendered.bundle.cas.clone())).collect()
}

fn held(
    subject: &MemberId,
    pem: &str,
    members: &BTreeMap<MemberId, MemberNow>,
    plans: &Plans,
) -> CrossingHeld {
    let needs = |member: &&MemberId| {
        // The member itself is among its door's callers; if no plan names it yet, nobody holds anything.
        let plan = plans.get(*member);
        plan.is_some_and(|cas| cas.contains_key(subject)) || *member == subject
    };
    let holds = |member: &MemberId| {
        let planned = plans.get(member).and_then(|cas| cas.get(subject));
        planned.is_some_and(|ca| ca.ca_pem == pem)
            && members.get(member).is_some_and(|now| has_written(now, subject))
    };
    let mut missing = members.keys().filter(needs).filter(|member| !holds(member)).cloned();
    CrossingHeld {
        ca: Sha256::digest(pem).into(),
        missing: missing.by_ref().take(MISSING_MAX).collect(),
        more: missing.next().is_some(),
    }
}

/// Its agent has written its newest plan, the CA among it, and its gateways have taken what they were to.
fn has_written(now: &MemberNow, subject: &MemberId) -> bool {
    let peer = keys::member_object(subject.as_str());
    let is_about = |id: &ObjectId| {
        &*id.kind == "ConfigMap"
            && (*id.name == *peer || &*id.name == keys::CONFIG_MAP_EAST_WEST_CALLERS)
    };
    let refused =
        |report: &ApplyReport| report.exceptions.keys().any(is_about) || report.exceptions_more > 0;
    now.holds_newest() && !now.said.applied.as_ref().is_some_and(refused)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use fairlead_model::session::Exception;
    use fairlead_model::{ClusterUid, PlanNumber, Reason};

    use super::*;

    const TWO: &str = "-----BEGIN CERTIFICATE-----\na\n-----END CERTIFICATE-----\n\
                       -----BEGIN CERTIFICATE-----\nb\n-----END CERTIFICATE-----\n";

    fn id(name: &str) -> MemberId {
        MemberId::new(name).unwrap()
    }

    fn mk_ca(pem: &str) -> CrossingCa {
        CrossingCa {
            uid: ClusterUid::new("u-west").unwrap(),
            membership: String::new(),
            ca_pem: pem.to_owned(),
            endorsements: Vec::new(),
        }
    }

    fn mk_plans(plans: &[(&str, &str)]) -> Plans {
        let plan = |(member, pem): &(&str, &str)| {
            let cas = (!pem.is_empty()).then(|| (id("west"), mk_ca(pem)));
            (id(member), cas.into_iter().collect())
        };
        plans.iter().map(plan).collect()
    }

    /// A member that has written all of its newest plan.
    fn mk_now() -> MemberNow {
        let number = PlanNumber::new(1, 1);
        let applied = ApplyReport { number, complete: true, ..ApplyReport::default() };
        let mut now = MemberNow { connected: true, ..MemberNow::default() };
        now.said.sent = Some(number);
        now.said.applied = Some(applied);
        now
    }

    fn missing(east: MemberNow, plans: &[(&str, &str)]) -> Vec<String> {
        let members = [(id("east"), east), (id("west"), mk_now())].into();
        let held = held(&id("west"), TWO, &members, &mk_plans(plans));
        assert!(!held.more);
        held.missing.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn who_has_written_the_plan_with_that_text_holds_it() {
        let both = [("east", TWO), ("west", TWO)];
        assert_eq!(missing(mk_now(), &both), [""; 0]);
        assert_eq!(missing(mk_now(), &[("east", "old"), ("west", TWO)]), ["east"]);
        assert_eq!(missing(mk_now(), &[("east", ""), ("west", TWO)]), [""; 0]);
        assert_eq!(missing(mk_now(), &[("east", TWO), ("west", "")]), ["west"]);
    }

    #[test]
    fn who_is_away_behind_or_refuses_does_not() {
        let both = [("east", TWO), ("west", TWO)];
        let away = MemberNow { connected: false, ..mk_now() };
        let mut behind = mk_now();
        behind.said.sent = Some(PlanNumber::new(1, 2));
        let refusing = |name: &str| {
            let object = ObjectId::new("", "v1", "ConfigMap", "fairlead-system", name);
            let why = Exception { reason: Reason::ApplyRefused, message: String::new() };
            let mut now = mk_now();
            now.said.applied.as_mut().unwrap().exceptions.insert(object, why);
            now
        };
        for now in [away, behind, refusing("member-west"), refusing("fairlead-eastwest-callers")] {
            assert_eq!(missing(now, &both), ["east"]);
        }
        assert_eq!(missing(refusing("member-north"), &both), [""; 0]);
    }

    #[test]
    fn names_are_bounded() {
        let members: BTreeMap<_, _> =
            (0..MISSING_MAX + 5).map(|n| (id(&format!("m{n}")), MemberNow::default())).collect();
        let plans =
            members.keys().map(|m| (m.clone(), [(id("west"), mk_ca(TWO))].into())).collect();
        let held = held(&id("west"), TWO, &members, &plans);
        assert_eq!((held.missing.len(), held.more), (MISSING_MAX, true));
    }
}
