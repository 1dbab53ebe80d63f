//! Conditions: what stays of those that are there, and when one last changed.

use fairlead_model::Json;
use serde_json::json;

use crate::ingest::hub::Verdict;
use crate::raw;

/// Most conditions of one list, as the Gateway API says.
const CONDITIONS_MAX: usize = 8;

/// A condition to write.
pub(super) struct Wanted {
    pub(super) kind: &'static str,
    pub(super) status: &'static str,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Wanted {
    pub(super) fn new(
        kind: &'static str,
        status: &'static str,
        reason: impl ToString,
        message: impl AsRef<str>,
    ) -> Self {
        Self { kind, status, reason: reason.to_string(), message: raw::bounded(message.as_ref()) }
    }

    /// True with the type's own word, or False with the verdict's reason.
    pub(super) fn of(kind: &'static str, yes: &str, verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Yes => Self::new(kind, "True", yes, ""),
            Verdict::No { reason, message } => Self::new(kind, "False", reason, message),
        }
    }
}

/// When and for what conditions are written.
#[derive(Clone, Copy)]
pub(super) struct Stamp<'a> {
    pub(super) generation: i64,
    pub(super) now: &'a str,
}

/// The conditions to write. Those of types that are not `ours` stay; a time stays while its status
/// does.
pub(super) fn conditions(
    existing: &[Json],
    ours: &[&str],
    wanted: Vec<Wanted>,
    stamp: Stamp<'_>,
) -> Json {
    let kind = |condition: &Json| raw::field(condition, "type").map(str::to_owned);
    let write = |wanted: Wanted| {
        let before = existing.iter().find(|c| kind(c).as_deref() == Some(wanted.kind));
        let same = before.filter(|c| raw::field(c, "status") == Some(wanted.status));
        let since = same.and_then(|c| raw::field(c, "lastTransitionTime")).unwrap_or(stamp.now);
        json!({
            "type": wanted.kind,
            "status": wanted.status,
            "observedGeneration": stamp.generation,
            "lastTransitionTime": since,
            "reason": wanted.reason,
            "message": wanted.message,
        })
    };
    let mut all: Vec<Json> = wanted.into_iter().map(write).collect();
    let foreign = existing.iter().filter(|c| kind(c).is_some_and(|kind| !ours.contains(&&*kind)));
    let room = CONDITIONS_MAX.saturating_sub(all.len());
    all.extend(foreign.take(room).cloned());
    Json::Array(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(existing: &[Json], status: &'static str, now: &str) -> Json {
        let wanted = vec![Wanted::new("Accepted", status, "Accepted", "")];
        conditions(existing, &["Accepted", "Gone"], wanted, Stamp { generation: 3, now })
    }

    #[test]
    fn time_stays_while_the_status_does() {
        let first = write(&[], "True", "t1");
        let list = first.as_array().cloned().unwrap_or_default();
        assert_eq!(write(&list, "True", "t2"), first);
        assert_eq!(write(&list, "False", "t2")[0]["lastTransitionTime"], "t2");
    }

    #[test]
    fn conditions_of_others_stay_and_old_ones_of_ours_go() {
        let others = [
            json!({"type": "Theirs", "status": "True"}),
            json!({"type": "Gone", "status": "True"}),
            json!(3),
        ];
        let written = write(&others, "True", "t");
        assert_eq!(
            (written.as_array().map(Vec::len), &written[1]["type"]),
            (Some(2), &json!("Theirs"))
        );
    }
}
