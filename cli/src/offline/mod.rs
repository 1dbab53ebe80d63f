//! Planning from folders of YAML: what hub and agents would do, without any of them.
//!
//! `folder` reads, `assume` fills in what only running clusters know and says so, [`plan_fleet`] runs
//! the very code of agent (ingest), hub (ingest, plan) and hub again (render). Same folders, same
//! answer: the time is fixed, and so is the key of capabilities.

mod assume;
mod folder;

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::bundle::Bundle;
use fairlead_model::health::{MemberHealth, MemberState};
use fairlead_model::policy::Policy;
use fairlead_model::view::Explanation;
use fairlead_model::{MemberId, Millis, Note};
use fairlead_planner::{FleetInput, MemberInput, Memory, Planned};
use fairlead_translate::CapabilityKeys;
use fairlead_translate::ingest::hub::{HubObjects, ingest_hub};
use fairlead_translate::ingest::member::{AgentConfig, MemberObjects, ingest_snapshot};

pub(crate) use assume::{Assume, Doors};
pub(crate) use folder::read;

/// When everything happens. Any time will do, as long as it is the same every time.
const NOW: Millis = Millis(1_000_000_000_000);
/// Stands for the hub's own key, which never leaves its Secret: capabilities fit each other, but not
/// those of a running hub.
const KEYS: [(u32, [u8; 32]); 1] = [(1, [0; 32])];

/// The objects of a fleet.
#[derive(Debug, Default)]
pub(crate) struct Folders {
    /// Objects of the hub.
    pub(crate) hub: HubObjects,
    /// Objects by member.
    pub(crate) members: BTreeMap<MemberId, MemberFolder>,
    /// What was read but has no part in planning.
    pub(crate) skipped: usize,
}

/// The objects of one member.
#[derive(Debug, Default)]
pub(crate) struct MemberFolder {
    /// Objects that the agent looks at.
    pub(crate) objects: MemberObjects,
    /// The member's crossing CA, PEM.
    pub(crate) ca_pem: Option<String>,
    /// What the member lets the hub do.
    pub(crate) config: AgentConfig,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What every member would get; one that is absent would keep what it has.
    pub(crate) bundles: BTreeMap<MemberId, Bundle>,
    /// Why each route's traffic would go where it goes.
    pub(crate) explanations: Vec<Explanation>,
    /// What was left out, refused or bent.
    pub(crate) notes: Vec<Note>,
    /// What the folders do not say and was taken for granted.
    pub(crate) assumed: Vec<String>,
}

/// Plans.
pub(crate) fn plan_fleet(mut folders: Folders, assume: Assume) -> Outcome {
    let mut assumed = Vec::new();
    assume::fill_folders(&mut folders, &mut assumed);
    let ingested = ingest_hub(&folders.hub);
    let mut notes = ingested.notes;
    let mut members = BTreeMap::new();
    for (at, (id, folder)) in folders.members.iter().enumerate() {
        let (mut snapshot, more) = ingest_snapshot(&folder.objects, &folder.config);
        notes.extend(more.into_iter().map(|note| of_member(id, note)));
        let known = assume::Known {
            id,
            number: at + 1,
            spec: ingested.policy.members.get(id),
            ca_pem: folder.ca_pem.as_deref(),
            namespaces: &assume::namespaces_of(&folders.hub),
        };
        assume::fill_snapshot(&mut snapshot, &known, assume, &mut assumed);
        let health = MemberHealth { state: MemberState::Up, ..MemberHealth::default() };
        let snapshot = Some(Arc::new(snapshot));
        members.insert(id.clone(), MemberInput { snapshot, received_at: NOW, health });
    }
    let policy = Arc::new(ingested.policy);
    let memory = memory_of_better_days(&policy, &members);
    let input = FleetInput { now: NOW, policy, members, memory, ..FleetInput::default() };
    let planned = fairlead_planner::plan(&input);
    let bundles = render(&planned, &mut notes);
    notes.extend(report_notes(&planned));
    notes.sort();
    notes.dedup();
    let explain = |route| fairlead_planner::explain(&planned, route, None);
    let explanations = planned.decisions.keys().filter_map(explain).collect();
    Outcome { bundles, explanations, notes, assumed }
}

/// What a planner remembers that saw every endpoint ready a minute ago: without it, as many would be
/// expected as are ready, and folders with crashed pods would show no spill.
fn memory_of_better_days(
    policy: &Arc<Policy>,
    members: &BTreeMap<MemberId, MemberInput>,
) -> Memory {
    let mut members = members.clone();
    for member in members.values_mut() {
        let snapshot = member.snapshot.as_mut().map(Arc::make_mut);
        let services = snapshot.into_iter().flat_map(|snapshot| snapshot.services.values_mut());
        for zone in services.flat_map(|service| service.zones.values_mut()) {
            zone.ready = zone.total;
        }
    }
    let now = Millis(NOW.0 - 60_000);
    let input = FleetInput { now, policy: policy.clone(), members, ..FleetInput::default() };
    // Only the counts: decisions of then must not hold those of now.
    Memory { counts: fairlead_planner::plan(&input).memory.counts, ..Memory::default() }
}

fn of_member(id: &MemberId, note: Note) -> Note {
    Note { subject: format!("{id}: {}", note.subject), ..note }
}

fn render(planned: &Planned, notes: &mut Vec<Note>) -> BTreeMap<MemberId, Bundle> {
    let keys = CapabilityKeys { epochs: KEYS.into() };
    let mut bundles = BTreeMap::new();
    for (id, plan) in &planned.plans {
        let (bundle, more) = fairlead_translate::render(plan, &keys);
        // A note about the member itself names it already.
        let itself = format!("member {id}");
        notes.extend(
            more.into_iter().map(|n| if n.subject == itself { n } else { of_member(id, n) }),
        );
        bundles.insert(id.clone(), bundle);
    }
    bundles
}

fn report_notes(planned: &Planned) -> Vec<Note> {
    let report = &planned.report;
    let refused = report.gateways_refused.iter().flat_map(|(gateway, by_member)| {
        by_member.values().map(move |note| Note {
            subject: format!("{}, Gateway {gateway}", note.subject),
            ..note.clone()
        })
    });
    let of_members = report.members.values().flatten().cloned();
    report.alarms.iter().cloned().chain(of_members).chain(refused).collect()
}
