//! `fairlead migrate ingress`: prints what Ingresses come to as global routes, and what needs a person.
//!
//! Changes nothing: objects go to standard output for review, findings to standard error.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use fairlead_model::{Json, NsName};

use crate::args::Connection;
use crate::cluster::{Cluster, Kind};
use crate::failure::Failure;
use crate::migrate::{Finding, Migrated, Options, Weight, migrate};
use crate::output;
use crate::yaml;

const AFTER_HELP: &str = "\
Reads the Ingresses of the cluster of the kubeconfig, or of files, and prints a Gateway of class fairlead,
HTTPRoutes whose backends are ServiceImports, and with --for member the ServiceExports and ReferenceGrants
that the members need. Review them, apply the members' first, then the hub's. Ingress and route serve side
by side until the Ingress is deleted. What could not be converted is told on standard error.

EXAMPLES
  fairlead migrate ingress --context eu-1 > hub.yaml
  fairlead migrate ingress --context eu-1 --for member > member.yaml
  fairlead migrate ingress --from ./ingresses --gateway edge/public -o json";

/// Arguments of `migrate`.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    #[command(subcommand)]
    what: What,
}

/// What to migrate from.
#[derive(Debug, Subcommand)]
enum What {
    /// Turn Ingresses into global routes, to review.
    #[command(after_help = AFTER_HELP)]
    Ingress(IngressArgs),
}

#[derive(Debug, Args)]
struct IngressArgs {
    /// A file or folder of YAML with Ingresses, and Services where ports have names; without it the
    /// cluster of the kubeconfig.
    #[arg(long, value_name = "PATH")]
    from: Option<PathBuf>,
    /// The global gateway to attach to, as NAMESPACE/NAME.
    #[arg(long, value_name = "GATEWAY", default_value = "infra/public")]
    gateway: NsName,
    /// Whose objects to print.
    #[arg(long = "for", value_enum, value_name = "WHOSE", default_value_t = Whose::Hub)]
    whose: Whose,
    /// Form of what is printed.
    #[arg(short, long, value_enum, value_name = "FORM", default_value_t = Form::Yaml)]
    output: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Whose {
    /// Gateway and HTTPRoutes.
    Hub,
    /// ServiceExports and ReferenceGrants.
    Member,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Objects, for `kubectl apply -f -`.
    Yaml,
    /// Objects of both and findings.
    Json,
}

/// Migrates.
pub(crate) async fn run(connection: &Connection, args: &MigrateArgs) -> Result<(), Failure> {
    let What::Ingress(args) = &args.what;
    let objects = match &args.from {
        Some(path) => read_files(path)?,
        None => read_cluster(connection).await?,
    };
    let migrated = migrate(&objects, &Options { gateway: args.gateway.clone() });
    if migrated.ingresses == 0 {
        let next = "check --from, or --kubeconfig and --context";
        return Err(Failure::failed("nothing to migrate", "there is no Ingress").next(next));
    }
    match (args.output, args.whose) {
        (Form::Json, _) => output::print(&output::json(&migrated)),
        (Form::Yaml, Whose::Hub) => output::print(&yaml::write_all(&migrated.hub)),
        (Form::Yaml, Whose::Member) => output::print(&yaml::write_all(&migrated.member)),
    }
    eprintln!("{}", told(&migrated));
    Ok(())
}

/// Findings for people, those with most to do first.
fn told(migrated: &Migrated) -> String {
    let mut text = String::new();
    for (weight, title) in [
        (Weight::Person, "to do by a person"),
        (Weight::Differs, "different from before"),
        (Weight::Dropped, "left out, because it is done elsewhere"),
    ] {
        let of_weight: Vec<&Finding> =
            migrated.findings.iter().filter(|finding| finding.weight == weight).collect();
        if of_weight.is_empty() {
            continue;
        }
        text.push_str(&format!("{title}:\n"));
        for finding in of_weight {
            text.push_str(&format!("  Ingress {}: {}\n", finding.ingress, finding.message));
        }
    }
    let ingresses = match migrated.ingresses {
        1 => "1 Ingress".to_owned(),
        many => format!("{many} Ingresses"),
    };
    let (hub, member) = (migrated.hub.len(), migrated.member.len());
    text.push_str(&format!("{ingresses}: {hub} objects for the hub, {member} for the members"));
    text
}

async fn read_cluster(connection: &Connection) -> Result<Vec<Json>, Failure> {
    let cluster = Cluster::open(connection).await?;
    let mut objects = Vec::new();
    for kind in [Kind::known("networking.k8s.io/v1", "Ingress"), Kind::known("v1", "Service")] {
        objects.extend(cluster.list(&kind, "", "").await?.unwrap_or_default());
    }
    Ok(objects)
}

fn read_files(path: &Path) -> Result<Vec<Json>, Failure> {
    let what = format!("cannot read {}", path.display());
    let failed = |why: &dyn std::fmt::Display| Failure::failed(&what, why);
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|error| failed(&error))?;
        let entries = entries.filter_map(|entry| Some(entry.ok()?.path()));
        files = entries
            .filter(|file| file.extension().is_some_and(|e| e == "yaml" || e == "yml"))
            .collect();
        files.sort();
    }
    let mut objects = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|error| failed(&error))?;
        let read = yaml::read(&file.display().to_string(), &text).map_err(|e| failed(&e))?;
        objects.extend(read);
    }
    Ok(objects)
}
