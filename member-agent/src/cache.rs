//! What the agent knows of its cluster: the objects of all watched kinds, and how far each watch is.
//!
//! One writer per kind (its watch) and the apply loop, which puts what the API server answered.
//! Readers lock briefly and never across an await. Every change bumps a number that wakes them; they
//! read the state, not the event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fairlead_agent_core::diff::{KindKey, KindState};
use fairlead_agent_core::live::{LiveObject, LiveObjects};
use fairlead_model::health::ApiServer;
use fairlead_model::{NsName, ObjectId};
use fairlead_translate::ingest::member::SliceCounts;
use tokio::sync::watch;

/// The cache, shared by all tasks.
#[derive(Debug)]
pub struct Cache {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

/// An object as a watch read it.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// Which.
    pub id: ObjectId,
    /// What is kept of it.
    pub live: LiveObject,
    /// Of a foreign EndpointSlice: its Service and what it counts.
    pub counts: Option<(NsName, SliceCounts)>,
}

/// What is known.
#[derive(Debug, Default)]
pub struct State {
    /// Objects.
    pub live: LiveObjects,
    /// What foreign EndpointSlices count, with their Service.
    pub slices: BTreeMap<ObjectId, (NsName, SliceCounts)>,
    /// Watches.
    pub kinds: BTreeMap<KindKey, KindState>,
    /// Kinds whose first answer (a list, or "not served") has not come yet.
    pub unanswered: BTreeSet<KindKey>,
    /// What stands against a watch, in words.
    pub troubles: BTreeMap<KindKey, String>,
    /// Uids of objects that are gone, oldest first.
    gone: VecDeque<String>,
}

/// So many objects that are gone are remembered: more than can be deleted while one answer of the API
/// server is on its way.
const GONE_MAX: usize = 4_096;

impl State {
    /// Whether the API server can be reached: it is lost when every watch is, and at least one says
    /// what stands against it. A single kind that fails has reasons of its own.
    pub fn api_server(&self) -> ApiServer {
        let is_lost = |state: &KindState| *state == KindState::Unsynced;
        if !self.troubles.is_empty() && self.kinds.values().all(is_lost) {
            ApiServer::Lost
        } else {
            ApiServer::Answers
        }
    }
}

/// Tells whenever the API server is lost or back.
pub async fn tell_api_server(cache: Arc<Cache>, tell: watch::Sender<ApiServer>) {
    let mut changes = cache.subscribe();
    loop {
        changes.mark_unchanged();
        let now = cache.read().api_server();
        tell.send_if_modified(|held| std::mem::replace(held, now) != now);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

impl Cache {
    /// A cache in which none of these kinds was heard of yet.
    pub fn new(kinds: impl IntoIterator<Item = KindKey>) -> Arc<Self> {
        let unanswered: BTreeSet<KindKey> = kinds.into_iter().collect();
        let unsynced = |kind: &KindKey| (kind.clone(), KindState::Unsynced);
        let kinds = unanswered.iter().map(unsynced).collect();
        let state = State { kinds, unanswered, ..State::default() };
        Arc::new(Self { state: Mutex::new(state), changed: watch::Sender::new(0) })
    }

    /// Looks at the state. Do not keep the guard.
    pub fn read(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves maps that are whole: each change is one call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes at every change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn change(&self, edit: impl FnOnce(&mut State)) {
        edit(&mut self.read());
        self.changed.send_modify(|count| *count += 1);
    }

    /// Replaces all objects of a kind: its watch is synced.
    pub fn replace(&self, kind: &KindKey, version: &str, objects: Vec<Read>) {
        self.change(|state| {
            state.forget(kind);
            for read in objects {
                state.insert(read);
            }
            let synced = KindState::Synced { version: version.into() };
            state.kinds.insert(kind.clone(), synced);
            state.unanswered.remove(kind);
            state.troubles.remove(kind);
        });
    }

    /// Says that a kind is not served: there are no objects of it.
    pub fn set_missing(&self, kind: &KindKey) {
        self.settle(kind, KindState::Missing, String::new());
    }

    /// Says that what is there of a kind is not known any more. What was known stays visible.
    pub fn set_unsynced(&self, kind: &KindKey, why: String) {
        self.note(kind, KindState::Unsynced, why);
    }

    /// Goes on without a kind that we may not see.
    pub fn give_up(&self, kind: &KindKey) {
        let waited_for = self.read().unanswered.contains(kind);
        if waited_for {
            self.change(|state| {
                state.unanswered.remove(kind);
            });
        }
    }

    /// Says that a watch goes on where it was.
    pub fn set_synced(&self, kind: &KindKey, version: &str) {
        self.settle(kind, KindState::Synced { version: version.into() }, String::new());
    }

    fn settle(&self, kind: &KindKey, to: KindState, why: String) {
        self.note(kind, to, why);
        self.give_up(kind);
    }

    fn note(&self, kind: &KindKey, to: KindState, why: String) {
        let state = self.read();
        let same = state.kinds.get(kind) == Some(&to)
            && state.troubles.get(kind).map_or("", String::as_str) == why;
        drop(state);
        if same {
            return;
        }
        self.change(|state| {
            if to == KindState::Missing {
                state.forget(kind);
            }
            state.kinds.insert(kind.clone(), to);
            if why.is_empty() {
                state.troubles.remove(kind);
            } else {
                state.troubles.insert(kind.clone(), why);
            }
        });
    }

    /// Puts an object, unless a newer one of it is there, or it is known to be gone: the answer to a
    /// write may be read after the watch told of its end.
    pub fn put(&self, read: Read) {
        let held = self.read();
        if held.gone.contains(&read.live.uid) {
            return;
        }
        let same = held.live.get(&read.id).is_some_and(|live| **live == read.live)
            && held.slices.get(&read.id) == read.counts.as_ref();
        let newer = held.live.get(&read.id).is_some_and(|live| is_newer(live, &read.live));
        drop(held);
        if !same && !newer {
            self.change(|state| state.insert(read));
        }
    }

    /// Removes an object, unless it was made anew in between.
    pub fn remove(&self, id: &ObjectId, uid: &str) {
        let held = self.read().live.get(id).is_some_and(|held| held.uid == uid);
        if held {
            self.change(|state| {
                state.live.remove(id);
                state.slices.remove(id);
            });
        }
        self.read().bury(uid);
    }
}

impl State {
    fn insert(&mut self, read: Read) {
        match read.counts {
            Some(counts) => drop(self.slices.insert(read.id.clone(), counts)),
            None => drop(self.slices.remove(&read.id)),
        }
        self.live.insert(read.id, Arc::new(read.live));
    }

    /// A uid never comes back.
    fn bury(&mut self, uid: &str) {
        if uid.is_empty() || self.gone.iter().any(|gone| gone == uid) {
            return;
        }
        self.gone.push_back(uid.to_owned());
        if self.gone.len() > GONE_MAX {
            self.gone.pop_front();
        }
    }

    fn forget(&mut self, kind: &KindKey) {
        self.live.retain(|id, _| KindKey::of(id) != *kind);
        self.slices.retain(|id, _| KindKey::of(id) != *kind);
    }

    /// Objects of a kind, in whatever version.
    pub fn of_kind<'a>(
        &'a self,
        group: &'a str,
        kind: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectId, &'a Arc<LiveObject>)> {
        self.live.iter().filter(move |(id, _)| &*id.kind == kind && &*id.group == group)
    }

    /// True when what is there of a kind is known.
    pub fn is_synced(&self, group: &str, kind: &str) -> bool {
        matches!(self.kinds.get(&KindKey::new(group, kind)), Some(KindState::Synced { .. }))
    }
}

/// The API server's own answer to a write may overtake the watch: what is older must not undo it.
fn is_newer(held: &LiveObject, object: &LiveObject) -> bool {
    let number = |object: &LiveObject| object.resource_version.parse::<u64>().ok();
    held.uid == object.uid && number(held).zip(number(object)).is_some_and(|(held, new)| held > new)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, version: &str) -> Read {
        let id = ObjectId::new("", "v1", "Service", "shop", name);
        let live = LiveObject {
            uid: format!("uid-{name}"),
            resource_version: version.to_owned(),
            content: json!({"at": version}),
            owned: None,
        };
        Read { id, live, counts: None }
    }

    fn cache() -> (Arc<Cache>, KindKey) {
        let kind = KindKey::new("", "Service");
        (Cache::new([kind.clone(), KindKey::new("", "Node")]), kind)
    }

    #[test]
    fn a_list_replaces_what_was_there_of_its_kind_only() {
        let (cache, kind) = cache();
        let node = ObjectId::new("", "v1", "Node", "", "n");
        cache.put(Read { id: node.clone(), ..object("n", "1") });
        cache.put(object("old", "1"));
        let id = object("new", "2").id;
        cache.replace(&kind, "v1", vec![object("new", "2")]);
        let state = cache.read();
        assert_eq!(state.live.keys().collect::<Vec<_>>(), [&node, &id]);
        assert_eq!(state.kinds[&kind], KindState::Synced { version: "v1".into() });
        assert_eq!(state.unanswered.len(), 1);
    }

    #[test]
    fn what_is_older_does_not_undo_what_was_written() {
        let (cache, _) = cache();
        let id = object("a", "12").id;
        cache.put(object("a", "12"));
        cache.put(object("a", "9"));
        assert_eq!(cache.read().live[&id].resource_version, "12");
        let mut anew = object("a", "9");
        anew.live.uid = "another".to_owned();
        cache.put(anew);
        assert_eq!(cache.read().live[&id].resource_version, "9", "made anew counts");
    }

    #[test]
    fn what_is_gone_does_not_come_back_by_a_late_answer() {
        let (cache, _) = cache();
        let id = object("a", "1").id;
        cache.put(object("a", "1"));
        cache.remove(&id, "uid-a");
        cache.put(object("a", "2"));
        assert!(!cache.read().live.contains_key(&id));
        // The watch told of the end before the answer of the creation was read.
        cache.remove(&id, "uid-b");
        let mut late = object("a", "3");
        late.live.uid = "uid-b".to_owned();
        cache.put(late);
        assert!(!cache.read().live.contains_key(&id));
        let mut anew = object("a", "4");
        anew.live.uid = "uid-c".to_owned();
        cache.put(anew);
        assert!(cache.read().live.contains_key(&id));
    }

    #[test]
    fn the_gone_are_bounded() {
        let mut state = State::default();
        for n in 0..GONE_MAX + 10 {
            state.bury(&n.to_string());
        }
        assert_eq!(state.gone.len(), GONE_MAX);
        assert!(!state.gone.contains(&"3".to_owned()));
    }

    #[test]
    fn nobody_is_woken_without_a_change() {
        let (cache, kind) = cache();
        let mut changes = cache.subscribe();
        cache.set_missing(&kind);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        cache.set_missing(&kind);
        cache.remove(&object("a", "1").id, "uid-a");
        assert!(!changes.has_changed().unwrap());
        cache.put(object("a", "1"));
        changes.mark_unchanged();
        cache.put(object("a", "1"));
        assert!(!changes.has_changed().unwrap());
    }

    #[test]
    fn a_watch_that_never_worked_is_waited_for_unless_it_is_given_up() {
        let (cache, kind) = cache();
        cache.set_unsynced(&kind, "no route to host".to_owned());
        assert!(cache.read().unanswered.contains(&kind));
        cache.give_up(&kind);
        assert!(!cache.read().unanswered.contains(&kind));
    }

    #[test]
    fn a_kind_that_went_away_takes_its_objects_along_and_a_lost_watch_does_not() {
        let (cache, kind) = cache();
        cache.replace(&kind, "v1", vec![object("a", "1")]);
        cache.set_unsynced(&kind, "forbidden".to_owned());
        let counts = || {
            let state = cache.read();
            (state.live.len(), state.troubles.len())
        };
        assert_eq!(counts(), (1, 1));
        cache.set_missing(&kind);
        assert_eq!(counts(), (0, 0));
    }
}
