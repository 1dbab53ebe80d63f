//! `fairlead plan`: what every member would get, from folders of YAML, without any server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use fairlead_model::bundle::{Bundle, Gate};
use fairlead_model::view::Explanation;
use fairlead_model::{Json, MemberId, Note};
use serde::Serialize;

use crate::command::explain;
use crate::failure::Failure;
use crate::offline::{self, Assume, Doors, Outcome};
use crate::output::{self, Format, columns, count, or_dash};
use crate::progress::Steps;
use crate::yaml;

const AFTER_HELP: &str = "\
DIR has a folder `hub` (MemberClusters, Gateways, routes, TrafficPolicies) and a folder for each
member, named as it (Gateways, Services, ServiceExports, EndpointSlices, Namespaces, Nodes). Files end
in .yaml, .yml or .json and may hold several objects; kinds that have no part in planning are skipped.

Doors count as proven shut, endpoints as ready a minute ago. What folders do not say is assumed and told: a member's crossing CA is
taken from ConfigMap fairlead-system/fairlead-crossing-ca (key ca.crt), its door's address from the
status of Gateway fairlead-system/fairlead-eastwest. Capabilities in the output fit each other, not
those of a running hub, whose key stays in its Secret.

EXAMPLES
  fairlead plan ./fleet --report
  fairlead plan ./fleet --member eu-1 -o yaml
  diff <(fairlead plan ./fleet -o yaml) <(git stash -q; fairlead plan ./fleet -o yaml; git stash pop -q)";

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct PlanArgs {
    /// Folder with a folder for the hub and one for each member.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Only what this member would get.
    #[arg(long, value_name = "NAME")]
    member: Option<MemberId>,
    /// Also say why each route's traffic would go where it goes.
    #[arg(long)]
    report: bool,
    /// Give doors that the folders do not have an address and a CA from documentation.
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    assume_doors: bool,
    /// Ready endpoints of exported Services without EndpointSlices.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    assume_endpoints: u32,
    /// Form of the output; yaml is what `kubectl apply --server-side -f -` takes.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints the plan.
pub(crate) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let folders = offline::read(&args.dir)?;
    let steps = Steps::for_stderr();
    if folders.skipped > 0 {
        let objects = count(folders.skipped, "object");
        steps.say(format!("{objects} of kinds that have no part in planning skipped"));
    }
    let doors = if args.assume_doors { Doors::Assumed } else { Doors::AsWritten };
    let assume = Assume { doors, endpoints: args.assume_endpoints };
    let outcome = only(offline::plan_fleet(folders, assume), args)?;
    if args.output != Format::Json {
        outcome.assumed.iter().for_each(|text| steps.say(format!("assumed: {text}")));
    }
    if args.output == Format::Yaml {
        outcome.notes.iter().for_each(|note| steps.warn(note.to_string()));
    }
    output::print(&shown(&outcome, args));
    Ok(())
}

/// Keeps the asked member.
fn only(mut outcome: Outcome, args: &PlanArgs) -> Result<Outcome, Failure> {
    let Some(member) = &args.member else {
        return Ok(outcome);
    };
    if !outcome.bundles.contains_key(member) {
        let names = output::list(outcome.bundles.keys());
        return Err(Failure::failed(format!("cannot plan for {member}"), "it gets no plan")
            .next(format!("members that do: {names}; see --report for the others")));
    }
    outcome.bundles.retain(|id, _| id == member);
    for explanation in &mut outcome.explanations {
        explanation.entries.retain(|id, _| id == member);
    }
    Ok(outcome)
}

fn shown(outcome: &Outcome, args: &PlanArgs) -> String {
    match args.output {
        Format::Table => table(outcome, args),
        Format::Yaml => objects_yaml(outcome, args),
        Format::Json => output::json(&Document::of(outcome, args)),
    }
}

fn table(outcome: &Outcome, args: &PlanArgs) -> String {
    let rows = outcome.bundles.iter().flat_map(|(member, bundle)| {
        bundle.objects.iter().map(|(id, object)| {
            let gate = match object.gate {
                Gate::Open => "at once",
                Gate::DoorShut | Gate::SniDoorShut => "when the door is proven shut",
            };
            vec![
                member.to_string(),
                id.kind.to_string(),
                or_dash(&id.namespace),
                id.name.to_string(),
                gate.to_owned(),
            ]
        })
    });
    let mut text = columns(&["MEMBER", "KIND", "NAMESPACE", "NAME", "APPLIED"], rows.collect());
    for explanation in outcome.explanations.iter().filter(|_| args.report) {
        text.push_str(&format!("\n\n{}", explain::tree(explanation, &[])));
    }
    if !outcome.notes.is_empty() {
        text.push_str("\n\nNotes");
    }
    outcome.notes.iter().for_each(|note| text.push_str(&format!("\n  {note}")));
    text
}

fn objects_yaml(outcome: &Outcome, args: &PlanArgs) -> String {
    let mut text = String::new();
    for explanation in outcome.explanations.iter().filter(|_| args.report) {
        explain::tree(explanation, &[])
            .lines()
            .for_each(|line| text.push_str(&format!("# {line}\n")));
    }
    for (member, bundle) in &outcome.bundles {
        text.push_str(&format!("# ---- member {member}\n"));
        text.push_str(&yaml::write_all(bundle.objects.values().map(|object| &object.content)));
    }
    text
}

/// The plan as one JSON document.
#[derive(Serialize)]
struct Document<'a> {
    members: BTreeMap<&'a MemberId, MemberDocument<'a>>,
    notes: &'a [Note],
    assumed: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<&'a [Explanation]>,
}

/// What one member would get.
#[derive(Serialize)]
struct MemberDocument<'a> {
    objects: Vec<&'a Json>,
}

impl<'a> Document<'a> {
    fn of(outcome: &'a Outcome, args: &PlanArgs) -> Self {
        let objects = |bundle: &'a Bundle| MemberDocument {
            objects: bundle.objects.values().map(|object| &object.content).collect(),
        };
        Self {
            members: outcome.bundles.iter().map(|(id, bundle)| (id, objects(bundle))).collect(),
            notes: &outcome.notes,
            assumed: &outcome.assumed,
            report: args.report.then_some(&outcome.explanations),
        }
    }
}
