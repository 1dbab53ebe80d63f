//! An agent's process: the machines of `fairlead-agent-core`, put together as the real one puts them
//! together. Its disk and its cluster's objects outlive it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fairlead_agent_core::live::{LiveObject, LiveObjects};
use fairlead_agent_core::overlay::{Overlay, OverlayInput, overlay_with};
use fairlead_agent_core::probe::{PeerProbe, Suspicion, suspect};
use fairlead_agent_core::readiness::Readiness;
use fairlead_agent_core::session::{Identity, Input, Output, Session};
use fairlead_model::bundle::{Bundle, Peer};
use fairlead_model::health::{PeerReach, ProbeOutcome, ProbeReport, Reach};
use fairlead_model::ledger::Ledger;
use fairlead_model::session::{ApplyReport, OverlayReport};
use fairlead_model::{MemberId, Millis, ObjectId, PlanNumber, RouteKey};
use fairlead_proto::ledger::ledger_to_bundle;

use crate::bug::Bug;
use crate::bundle::{Door, LiveRule, read_door, read_rules, route_id};

/// What an agent keeps through restarts.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    /// The last bundle.
    pub bundle: Option<(PlanNumber, Ledger)>,
    /// Rises with every start.
    pub incarnation: u64,
}

/// What a member's API server holds.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Objects.
    pub live: LiveObjects,
    /// The rules of its routes, read.
    pub routes: BTreeMap<ObjectId, Vec<LiveRule>>,
    /// Its door, read.
    pub door: Door,
    /// Writes so far.
    pub writes: u64,
}

/// An agent's process.
pub struct Agent {
    /// Its clock runs ahead by that.
    pub skew: u64,
    /// Tells events of this process from those of one before.
    pub generation: u64,
    /// The machine that talks to the hub.
    pub session: Session,
    /// Its stream.
    pub conn: Option<u64>,
    /// The bundle that counts.
    pub bundle: Option<Bundle>,
    /// Peers that are probed, with a number that tells one probing from the next.
    pub probes: BTreeMap<MemberId, (u64, Peer, PeerProbe)>,
    /// What they found.
    pub report: ProbeReport,
    /// What peers and we ourselves say of services.
    pub readiness: Readiness,
    /// The report that is believed although it looks as if we were alone.
    pub believed: Option<ProbeReport>,
    bug: Bug,
    applied: Option<PlanNumber>,
    overlay: Option<OverlayReport>,
    stuck: BTreeMap<MemberId, Reach>,
}

/// A write: the object, and its rules when it is a route.
pub type Written = Vec<(ObjectId, Option<Vec<LiveRule>>)>;

impl Agent {
    /// A process that starts now.
    pub fn start(
        identity: Identity,
        disk: &Disk,
        (generation, skew): (u64, u64),
        bug: Bug,
        now: Millis,
    ) -> Self {
        let mut agent = Self {
            skew,
            generation,
            session: Session::new(identity, disk.bundle.clone(), now),
            conn: None,
            bundle: None,
            probes: BTreeMap::new(),
            report: ProbeReport::new(),
            readiness: Readiness::default(),
            believed: None,
            bug,
            applied: None,
            overlay: None,
            stuck: BTreeMap::new(),
        };
        if let Some((number, ledger)) = &disk.bundle {
            agent.take(*number, ledger);
        }
        agent
    }

    /// A bundle counts from now on; the peers whose probes must be started.
    pub fn take(&mut self, number: PlanNumber, ledger: &Ledger) {
        let (mut bundle, notes) = ledger_to_bundle(ledger);
        assert!(notes.is_empty(), "the hub sent what has no meaning: {notes:?}");
        bundle.number = number;
        self.probes.retain(|member, (_, peer, _)| bundle.peers.get(member) == Some(&*peer));
        self.report.retain(|member, _| bundle.peers.contains_key(member));
        self.bundle = Some(bundle);
    }

    /// Peers that are not probed yet.
    pub fn unprobed(&self) -> Vec<(MemberId, Peer)> {
        let peers = self.bundle.iter().flat_map(|bundle| &bundle.peers);
        let missing = peers.filter(|(member, _)| !self.probes.contains_key(*member));
        missing.map(|(member, peer)| (member.clone(), peer.clone())).collect()
    }

    /// A probe ended; true when the report changed.
    pub fn probed(
        &mut self,
        peer: &MemberId,
        outcome: ProbeOutcome,
        started: Millis,
        now: Millis,
    ) -> bool {
        let Some((_, _, probe)) = self.probes.get_mut(peer) else { return false };
        probe.on_outcome(outcome, started, now);
        let mut verdict = probe.verdict();
        if self.bug == Bug::LiftAtOnce && outcome == ProbeOutcome::Answered {
            verdict = PeerReach { reach: Reach::Reachable, since: now };
            let before = self.report.get(peer).map(|said| said.reach);
            if before == Some(Reach::Reachable) {
                return false;
            }
        }
        self.report.insert(peer.clone(), verdict) != Some(verdict)
    }

    /// What to make of the report.
    pub fn suspicion(&self) -> Suspicion {
        match suspect(&self.report) {
            Suspicion::Alone if self.believed.as_ref() != Some(&self.report) => Suspicion::Alone,
            Suspicion::Alone | Suspicion::None => Suspicion::None,
        }
    }

    /// Writes what is due into the cluster; what was written, and what to tell the hub.
    pub fn apply(&mut self, cluster: &mut Cluster) -> (Written, Vec<Input>) {
        let Some(bundle) = &self.bundle else { return (Vec::new(), Vec::new()) };
        let mut reaches: BTreeMap<MemberId, Reach> =
            self.report.iter().map(|(id, said)| (id.clone(), said.reach)).collect();
        if self.bug == Bug::OverlayNeverLifts {
            self.stuck.extend(
                reaches.iter().filter(|(_, r)| r.is_out()).map(|(id, reach)| (id.clone(), *reach)),
            );
            reaches.extend(self.stuck.clone());
        }
        let overlay = overlay_with(
            &OverlayInput {
                bundle,
                reaches: &reaches,
                suspicion: self.suspicion(),
                live: &cluster.live,
            },
            &self.readiness.gone(),
        );
        let written = cluster.hold(bundle, &overlay);
        let mut inputs = Vec::new();
        if self.applied != Some(bundle.number) {
            self.applied = Some(bundle.number);
            inputs.push(Input::Applied(ApplyReport {
                number: bundle.number,
                complete: true,
                ..ApplyReport::default()
            }));
        }
        if self.overlay.as_ref() != Some(&overlay.report) {
            self.overlay = Some(overlay.report.clone());
            inputs.push(Input::Overlay(overlay.report));
        }
        (written, inputs)
    }

    /// The report in force, for people.
    pub fn overlay(&self) -> Option<&OverlayReport> {
        self.overlay.as_ref()
    }

    /// Tells the machine that talks to the hub.
    pub fn tell(&mut self, input: Input, now: Millis, jitter: f64) -> Vec<Output> {
        self.session.on(input, now, jitter)
    }
}

impl Cluster {
    /// Makes the objects what bundle and overlay say.
    fn hold(&mut self, bundle: &Bundle, overlay: &Overlay) -> Written {
        let mut written = Written::new();
        for (id, object) in &bundle.objects {
            let content = overlay.contents.get(id).unwrap_or(&object.content);
            if self.live.get(id).is_some_and(|live| live.content == *content) {
                continue;
            }
            self.writes += 1;
            let live = LiveObject {
                uid: "uid".to_owned(),
                resource_version: self.writes.to_string(),
                content: content.clone(),
                owned: None,
            };
            self.live.insert(id.clone(), Arc::new(live));
            let is_route = &*id.kind == "HTTPRoute";
            if is_route {
                let rules = read_rules(content);
                self.routes.insert(id.clone(), rules.clone());
                written.push((id.clone(), Some(rules)));
            } else {
                self.door = read_door(content);
                written.push((id.clone(), None));
            }
        }
        let named: BTreeSet<&ObjectId> = bundle.objects.keys().collect();
        self.live.retain(|id, _| named.contains(id));
        self.routes.retain(|id, _| named.contains(id));
        written
    }

    /// The rules of a route.
    pub fn rules(&self, route: &RouteKey) -> &[LiveRule] {
        self.routes.get(&route_id(route)).map_or(&[], Vec::as_slice)
    }
}
