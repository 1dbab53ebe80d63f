//! Kubernetes Events of what happens to members, on their MemberClusters.
//!
//! Owns the one writer of Events. Never waits for the API server where something happens: what is told goes
//! through a bounded queue, and what does not fit is counted in the log. The same again is counted in
//! the Event that is there. An Event that cannot be written is lost: the log has it too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_crds::keys;
use fairlead_hub_core::event::{Seen, Told, Weight, happened};
use fairlead_model::{MemberId, NsName};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use crate::conductor::Current;
use crate::fleet::Fleet;
use crate::watch::Objects;

/// Events that wait for a slow API server.
const QUEUE_MAX: usize = 256;
/// The API cuts no note: it refuses longer ones.
const NOTE_CHARS_MAX: usize = 1_000;
/// How often members are looked at: an Event has seconds.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const MEMBER_CLUSTER: &str = "MemberCluster";

/// Where others tell what happened.
#[derive(Clone)]
pub struct Events(mpsc::Sender<Told>);

/// Writes what is told.
pub struct Writer {
    told: mpsc::Receiver<Told>,
    recorder: Recorder,
    objects: Arc<Objects>,
}

/// Events, and who writes them.
pub fn open(client: &Client, objects: Arc<Objects>) -> (Events, Writer) {
    let (sender, told) = mpsc::channel(QUEUE_MAX);
    let reporter = Reporter { controller: keys::HUB.to_owned(), instance: None };
    let recorder = Recorder::new(client.clone(), reporter);
    (Events(sender), Writer { told, recorder, objects })
}

impl Events {
    /// Events that nobody writes, for tests.
    pub fn none() -> Self {
        Self(mpsc::channel(1).0)
    }

    /// Tells; never waits.
    pub fn tell(&self, told: Told) {
        if let Err(mpsc::error::TrySendError::Full(told)) = self.0.try_send(told) {
            tracing::warn!(member = %told.member, reason = told.reason, "too many Events; one is left out");
        }
    }

    /// Tells what happens to members, for ever.
    pub async fn follow(self, fleet: Arc<Fleet>, current: Arc<ArcSwap<Current>>) {
        let mut before: Option<BTreeMap<MemberId, Seen>> = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = look(&fleet, &current.load());
            if let Some(before) = &before {
                happened(before, &now).into_iter().for_each(|told| self.tell(told));
            }
            // Before the first plan nothing is known of anybody.
            if before.is_some() || !now.is_empty() {
                before = Some(now);
            }
        }
    }
}

fn look(fleet: &Fleet, current: &Current) -> BTreeMap<MemberId, Seen> {
    let members = &current.ingested.policy.members;
    let states = fleet.states().into_iter();
    let seen = |(member, state)| {
        let traffic = members.get(&member)?.traffic;
        Some((member, Seen { state, traffic }))
    };
    states.filter_map(seen).collect()
}

impl Writer {
    /// Writes for ever, one after the other.
    pub async fn run(mut self) {
        while let Some(told) = self.told.recv().await {
            let event = Event {
                type_: match told.weight {
                    Weight::Normal => EventType::Normal,
                    Weight::Warning => EventType::Warning,
                },
                reason: told.reason.to_owned(),
                note: Some(told.note.chars().take(NOTE_CHARS_MAX).collect()),
                action: told.reason.to_owned(),
                secondary: None,
            };
            if let Err(error) = self.recorder.publish(&event, &self.reference(&told.member)).await {
                tracing::warn!(member = %told.member, reason = told.reason, %error, "cannot write an Event");
            }
        }
    }

    /// One that is gone, or was refused, has a name and no UID.
    fn reference(&self, member: &MemberId) -> ObjectReference {
        let objects = self.objects.of(MEMBER_CLUSTER);
        let object = objects.get(&NsName::new("", member.as_str()));
        let uid = object.and_then(|object| object.pointer("/metadata/uid")?.as_str());
        ObjectReference {
            api_version: Some(keys::API_VERSION.to_owned()),
            kind: Some(MEMBER_CLUSTER.to_owned()),
            name: Some(member.to_string()),
            uid: uid.map(str::to_owned),
            ..ObjectReference::default()
        }
    }
}
