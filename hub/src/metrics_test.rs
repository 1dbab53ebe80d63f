//! Names, types and labels of what the hub shows, and that alerts and dashboard ask for what there is.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use fairlead_telemetry::lint;

fn text(metrics: &Metrics) -> String {
    metrics.encode(&Figures::default()).unwrap()
}

/// Every metric with a sample: a family without one does not show.
fn filled() -> String {
    let metrics = Metrics::new(Some(&Counts::default()));
    let east = MemberId::new("east").unwrap();
    metrics.set_members([(&east, MemberState::Up)], 1);
    metrics.set_snapshots([(&east, Millis(1_000))]);
    metrics.set_held(&[]);
    metrics.set_rotation("fairlead-hub-ca", &[].into(), &["east".to_owned()].into());
    metrics.set_watch("HTTPRoute", true);
    metrics.count_plan(0.01, 0);
    metrics.count_status(Outcome::Done);
    metrics.count_store(Outcome::Done);
    metrics.count_propagation(Stage::Sent, 20);
    metrics.count_propagation(Stage::Applied, 200);
    metrics.count_propagation(Stage::Programmed, 400);
    metrics.count_opened();
    metrics.count_ended(Reason::AgentLost);
    metrics.pushes.get_or_create(&PushLabels { form: Form::Full }).inc();
    metrics.encode(&look::filled()).unwrap()
}

#[test]
fn a_removed_member_is_not_counted_any_more() {
    let metrics = Metrics::default();
    let east = MemberId::new("east").unwrap();
    metrics.set_members([(&east, MemberState::Up)], 1);
    let line = "fairlead_hub_member_state{member=\"east\",state=\"up\"} 1";
    assert!(text(&metrics).contains(line));
    metrics.set_members([], 0);
    assert!(!text(&metrics).contains("east"));
}

#[test]
fn a_rotation_shows_whom_it_waits_for_and_nobody_else() {
    let metrics = Metrics::default();
    let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let (first, second) = (set(&["east", "west"]), set(&["west"]));
    metrics.set_rotation("fairlead-hub-ca", &set(&[]), &first);
    metrics.set_rotation("fairlead-hub-keys", &set(&[]), &set(&["east"]));
    metrics.set_rotation("fairlead-hub-ca", &first, &second);
    let line = |secret: &str, member: &str| {
        format!("fairlead_hub_rotation_waits{{secret=\"{secret}\",member=\"{member}\"}} 1")
    };
    let shown = text(&metrics);
    assert!(shown.contains(&line("fairlead-hub-ca", "west")), "{shown}");
    assert!(shown.contains(&line("fairlead-hub-keys", "east")), "{shown}");
    assert!(!shown.contains(&line("fairlead-hub-ca", "east")), "{shown}");
    metrics.set_rotation("fairlead-hub-ca", &second, &set(&[]));
    assert!(!text(&metrics).contains("fairlead-hub-ca"));
}

#[test]
fn promtool_alerts_and_dashboard_would_find_nothing_to_say() {
    let askers = [
        include_str!("../../deploy/chart/hub/alerts.yaml"),
        include_str!("../../deploy/chart/hub/dashboard.json"),
    ];
    assert_eq!(lint::registry_problems(&filled(), "fairlead_hub_", &askers), [""; 0]);
}

#[test]
fn what_a_member_says_of_its_plan_has_three_results() {
    let mut report = ApplyReport { complete: true, ..ApplyReport::default() };
    assert_eq!(Applied::of(&report), Applied::Whole);
    let exception =
        fairlead_model::session::Exception { reason: Reason::Forbidden, message: String::new() };
    let id = fairlead_model::ObjectId::new("", "v1", "Service", "a", "b");
    report.exceptions = [(id, exception.clone())].into();
    assert_eq!(Applied::of(&report), Applied::Partly);
    report.refused = Some(exception);
    assert_eq!(Applied::of(&report), Applied::Refused);
}
