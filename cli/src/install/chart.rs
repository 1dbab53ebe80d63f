//! Keeps `hub.yaml` and `agent.yaml` equal to what the Helm charts give.
//!
//! Needs helm: environment variable HELM, or the one that the e2e tools built into their cache.
//! `UPDATE_GOLDEN=1` writes the files anew. Without helm there is nothing to compare with.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fairlead_crds::keys;
use fairlead_model::Json;

use crate::yaml;

const HEAD: &str = "# Made from deploy/chart/NAME by `UPDATE_GOLDEN=1 cargo test -p fairlead chart`; never edited.\n";

/// Placeholders in place of what a user would set; everything else is the chart's default.
const HUB_VALUES: &str = "\
advertise: '${advertise}'
service: {type: '${service-type}'}
extraArgs: ['--otlp-endpoint=${otlp-endpoint}']
";
const AGENT_VALUES: &str = "\
member: '${member}'
hub: '${hub}'
extraArgs: ['--region=${region}', '--zone=${zone}', '--gateway-class=${gateway-class}', '--otlp-endpoint=${otlp-endpoint}', '--gateway-sampling-percent=${sampling-percent}']
bootstrap: {token: '${token}', caHash: '${ca-hash}'}
";

#[test]
fn the_hub_is_what_its_chart_gives() {
    check("hub", HUB_VALUES);
}

#[test]
fn the_agent_is_what_its_chart_gives() {
    check("agent", AGENT_VALUES);
}

fn check(chart: &str, values: &str) {
    let Some(helm) = find_helm() else {
        eprintln!("no helm here: set HELM to compare with the charts");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rendered = render(&helm, &root.join("../deploy/chart").join(chart), values);
    let objects: Vec<Json> =
        yaml::read(chart, &rendered).unwrap().into_iter().map(as_installed_by_hand).collect();
    let text = HEAD.replace("NAME", chart) + &yaml::write_all(&objects);
    let path = root.join("src/install").join(format!("{chart}.yaml"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = yaml::read(chart, &std::fs::read_to_string(&path).unwrap()).unwrap();
    for (ours, charts) in committed.iter().zip(&objects) {
        assert_eq!(ours, charts, "src/install/{chart}.yaml differs from the chart");
    }
    assert_eq!(committed.len(), objects.len(), "src/install/{chart}.yaml differs from the chart");
}

fn find_helm() -> Option<PathBuf> {
    if let Some(helm) = std::env::var_os("HELM") {
        return Some(helm.into());
    }
    let tools = Path::new(&std::env::var_os("HOME")?).join(".cache/fairlead/tools");
    let folders = std::fs::read_dir(tools).ok()?.flatten();
    folders.map(|folder| folder.path().join("helm")).find(|helm| helm.is_file())
}

fn render(helm: &Path, chart: &Path, values: &str) -> String {
    let mut child = Command::new(helm)
        .args(["template", "fairlead"])
        .arg(chart)
        .args(["--namespace", keys::NAMESPACE, "--skip-schema-validation", "--values", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(values.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "helm template failed");
    String::from_utf8(output.stdout).unwrap()
}

/// The same object, installed by the CLI in place of Helm.
fn as_installed_by_hand(mut object: Json) -> Json {
    relabel(&mut object["metadata"]["labels"]);
    place(&mut object);
    if object["kind"] == "Deployment" {
        let pod = &mut object["spec"]["template"];
        relabel(&mut pod["metadata"]["labels"]);
        pod["spec"]["containers"][0]["image"] = "${image}".into();
    }
    object
}

fn relabel(labels: &mut Json) {
    let labels = labels.as_object_mut().unwrap();
    labels.remove("helm.sh/chart");
    labels.remove("app.kubernetes.io/instance");
    labels.insert(keys::MANAGED_BY.into(), keys::MANAGED_BY_CLI.into());
    labels.insert("app.kubernetes.io/version".into(), "${version}".into());
}

/// Replaces the namespace wherever the chart put its own.
fn place(value: &mut Json) {
    match value {
        Json::Object(map) => {
            for (key, value) in map {
                match value {
                    Json::String(text) if key == "namespace" && text == keys::NAMESPACE => {
                        *text = "${namespace}".into();
                    }
                    _ => place(value),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(place),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}
