//! `fairlead backup`: prints everything that a hub cannot rebuild.
//!
//! Reads only. Secrets go to a pipe, and to a file or a terminal only when a person says so.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use clap::Args;
use fairlead_crds::keys;
use fairlead_model::Json;
use jiff::Timestamp;

use crate::args::Connection;
use crate::backup::{Backup, Header, bare, is_derived, is_saved};
use crate::cluster::{Cluster, Kind, config_map, gateway_class, member_cluster, secret};
use crate::failure::Failure;
use crate::install;
use crate::output;
use crate::progress::Steps;

/// Pins that are named when the backup lacks what they mean; the rest is counted.
const PINS_NAMED: usize = 5;

const AFTER_HELP: &str = "\
Prints what a hub cannot rebuild: its CA and capability keys, what routes are pinned
to with the newest part of the history (three Secrets), MemberClusters, and every object
that it reads (Gateways, routes, grants, policies, and their namespaces). Not in it: what
the hub computes, older history, the join tokens, and Secrets of others. Numbers of plans
need no backup: agents tell a new hub theirs. Says which pins it lacks.

With the Secrets in it, a backup is as good as the hub: pipe it through a tool that encrypts.

EXAMPLES
  fairlead backup | age -r age1... > hub.age
  age -d -i key hub.age | fairlead restore -
  fairlead backup --without-secrets -o hub.yaml    # for review, and for hubs whose Secrets are kept elsewhere";

/// Arguments of `backup`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BackupArgs {
    /// Write to that file, which only its owner may read, instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Leave the hub's CA, capability keys and history out. Without the keys members must join again,
    /// without the history pins have no effect.
    #[arg(long)]
    without_secrets: bool,
    /// Let the Secrets go to a file or a terminal as they are.
    #[arg(long, conflicts_with = "without_secrets")]
    plain_secrets: bool,
}

/// Takes a backup.
pub(crate) async fn run(connection: &Connection, args: &BackupArgs) -> Result<(), Failure> {
    let stays = args.output.is_some() || !goes_into_a_pipe();
    if stays && !args.without_secrets && !args.plain_secrets {
        let why = "it holds the hub's private keys";
        return Err(Failure::usage("the backup is not written in the clear", why).next(
            "pipe it through a tool that encrypts, as in `fairlead backup | age -r RECIPIENT > hub.age`, \
             or say --without-secrets or --plain-secrets",
        ));
    }
    let cluster = Cluster::open(connection).await?;
    let backup = take(&cluster, &connection.namespace, !args.without_secrets).await?;
    let count = backup.objects.len();
    match &args.output {
        Some(path) => write_file(path, &backup.write())?,
        None => output::print(&backup.write()),
    }
    let steps = Steps::for_stderr();
    steps.done(format!("{} saved", output::count(count, "object")));
    tell_lacking(&backup.pins_lacking(), backup.header.secrets, steps);
    Ok(())
}

/// A hub that is made from this backup does not know what these pins mean.
fn tell_lacking(pins: &[String], secrets: bool, steps: Steps) {
    if pins.is_empty() {
        return;
    }
    let mut named = pins.iter().take(PINS_NAMED).cloned().collect::<Vec<_>>().join(", ");
    if pins.len() > PINS_NAMED {
        named.push_str(&format!(" and {} more", pins.len() - PINS_NAMED));
    }
    let next = match secrets {
        true => "the hub copies them within seconds: take the backup again",
        false => "keep Secret fairlead-hub-history too",
    };
    steps.warn(format!("not in it: what is pinned by {named}; {next}"));
}

/// Whether another program reads what is printed; a file and a terminal keep it.
fn goes_into_a_pipe() -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    let Ok(output) = std::io::stdout().as_fd().try_clone_to_owned() else { return false };
    let kind = File::from(output).metadata().map(|metadata| metadata.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket())
}

fn write_file(path: &PathBuf, text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |e| Failure::failed(format!("cannot write {}", path.display()), e);
    let mut options = std::fs::OpenOptions::new();
    // A file that is there may be readable by others.
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

/// Everything that belongs into a backup.
pub(crate) async fn take(cluster: &Cluster, home: &str, secrets: bool) -> Result<Backup, Failure> {
    let mut objects = Vec::new();
    if secrets {
        for name in [keys::SECRET_HUB_CA, keys::SECRET_HUB_KEYS] {
            let found = cluster.get(&secret(), home, name).await?;
            let missing = || {
                let what = format!("there is no hub in namespace {home}");
                Failure::failed(what, format!("Secret {name} does not exist"))
                    .next("use the hub's kubeconfig, and --namespace when it lives elsewhere")
            };
            objects.push(bare(&found.ok_or_else(missing)?));
        }
        // Absent as long as there is no history; older hubs have none.
        let history = cluster.get(&secret(), home, keys::SECRET_HUB_HISTORY).await?;
        objects.extend(history.as_ref().map(bare));
    }
    let mut read = Vec::new();
    for kind in [gateway_class(), member_cluster()] {
        read.extend(cluster.list(&kind, "", "").await?.unwrap_or_default());
    }
    for kind in cluster.namespaced_kinds().await?.iter().filter(|kind| is_saved(kind)) {
        let found = cluster.list(kind, "", "").await?.unwrap_or_default();
        read.extend(found.into_iter().filter(|object| !is_derived(object)));
    }
    objects.extend(namespaces(cluster, home, &read).await?);
    objects.extend(read.iter().map(bare));
    let info = cluster.get(&config_map(), home, keys::CONFIG_MAP_HUB).await?.unwrap_or_default();
    let header = Header {
        taken_at: Timestamp::now().to_string(),
        namespace: home.to_owned(),
        version: install::VERSION.to_owned(),
        address: info["data"]["address"].as_str().map(str::to_owned),
        secrets,
    };
    Ok(Backup { header, objects })
}

/// The namespaces of the objects: their labels decide who may attach.
async fn namespaces(cluster: &Cluster, home: &str, read: &[Json]) -> Result<Vec<Json>, Failure> {
    let used: BTreeSet<&str> =
        read.iter().filter_map(|object| object["metadata"]["namespace"].as_str()).collect();
    let all = cluster.list(&Kind::known("v1", "Namespace"), "", "").await?.unwrap_or_default();
    let of_use = |object: &&Json| {
        object["metadata"]["name"].as_str().is_some_and(|name| name != home && used.contains(name))
    };
    // Finalizers and phase are the API server's.
    let plain = |object: &Json| {
        let mut object = bare(object);
        if let Some(fields) = object.as_object_mut() {
            fields.remove("spec");
        }
        object
    };
    Ok(all.iter().filter(of_use).map(plain).collect())
}
