//! A real Prometheus beside a world, on the machine's own address, and promtool.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{
    http1,
    launch::Launch,
    process::Unit,
    wait::{self, Look},
    world::World,
};

const PORT: u16 = 9090;
const START_LIMIT: Duration = Duration::from_secs(60);

/// `promtool`, and where `prometheus` lies beside it.
pub struct Promtool {
    folder: PathBuf,
}

/// What promtool said of something.
#[derive(Debug)]
pub struct Checked {
    code: Option<i32>,
    pub said: String,
}

impl Checked {
    pub fn is_clean(&self) -> bool {
        self.code == Some(0)
    }
}

impl Promtool {
    /// From the folder of the built tool.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub fn prometheus(&self) -> PathBuf {
        self.folder.join("prometheus")
    }

    /// `promtool check metrics`: form, names, units, help.
    pub async fn check_metrics(&self, text: &str) -> Result<Checked> {
        self.check(&["check", "metrics"], text).await
    }

    /// `promtool check rules`.
    pub async fn check_rules(&self, file: &Path) -> Result<Checked> {
        self.check(&["check", "rules", &file.display().to_string()], "").await
    }

    async fn check(&self, args: &[&str], input: &str) -> Result<Checked> {
        let mut command = Command::new(self.folder.join("promtool"));
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting promtool")?;
        let mut stdin = child.stdin.take().context("promtool has no standard input")?;
        // It reads all before it says anything, so nothing waits for each other.
        stdin.write_all(input.as_bytes()).await.context("feeding promtool")?;
        drop(stdin);
        let output = child.wait_with_output().await.context("waiting for promtool")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Ok(Checked { code: output.status.code(), said })
    }
}

/// Who is scraped, as `host:port`.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    pub hub: Vec<String>,
    pub agents: Vec<String>,
}

/// A running Prometheus.
pub struct Prometheus {
    unit: Unit,
    address: Ipv4Addr,
}

/// An alert as Prometheus holds it.
#[derive(Clone, Debug, Deserialize)]
pub struct Rule {
    pub name: String,
    /// `unknown` before the first evaluation, then `ok` or `err`.
    pub health: String,
    #[serde(default)]
    pub state: String,
    #[serde(default, rename = "lastError")]
    pub error: String,
}

impl Prometheus {
    /// Starts one that scrapes every second and evaluates these rules.
    pub async fn start(
        world: &World,
        program: PathBuf,
        targets: &Targets,
        rules: &Value,
    ) -> Result<Self> {
        let address = world.host_address()?;
        let folder = world.folder().join("prometheus");
        std::fs::create_dir_all(&folder).context("making a folder for Prometheus")?;
        let (config, alerts) = (folder.join("prometheus.yaml"), folder.join("rules.yaml"));
        // JSON is YAML.
        std::fs::write(&alerts, rules.to_string()).context("writing Prometheus' rules")?;
        std::fs::write(&config, config_of(targets, &alerts).to_string())
            .context("writing Prometheus' configuration")?;
        let argv = vec![
            program.display().to_string(),
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            format!("--web.listen-address={address}:{PORT}"),
        ];
        let launch = Launch { argv, ..Launch::default() };
        let unit = Unit::new("prometheus", world.folder().join("prometheus.log"), launch);
        let prometheus = Self { unit, address };
        prometheus.unit.start().await?;
        let ready = wait::until("Prometheus to answer", START_LIMIT, || async {
            prometheus.rules().await?;
            Ok(Look::Done(()))
        });
        prometheus.unit.unless_it_ends(ready).await?;
        Ok(prometheus)
    }

    pub async fn kill(&self) {
        self.unit.kill().await;
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let request = Request::get(path).header("host", "prometheus").body(Empty::<Bytes>::new())?;
        let answer = http1::send((self.address, PORT).into(), request).await?;
        let (status, body) = (answer.status(), answer.into_body());
        let answer: Value = serde_json::from_slice(&body)
            .with_context(|| format!("Prometheus answered {status} to {path}"))?;
        if answer["status"] != "success" {
            bail!("{}", answer["error"].as_str().unwrap_or("no success, and no word why"));
        }
        serde_json::from_value(answer["data"].clone())
            .with_context(|| format!("reading Prometheus' answer to {path}"))
    }

    /// How many targets were scraped well the last time.
    pub async fn up(&self) -> Result<usize> {
        let data: Value = self.ask("/api/v1/targets").await?;
        let targets = data["activeTargets"].as_array().into_iter().flatten();
        Ok(targets.filter(|target| target["health"] == "up").count())
    }

    pub async fn rules(&self) -> Result<Vec<Rule>> {
        let data: Value = self.ask("/api/v1/rules").await?;
        let groups = data["groups"].as_array().into_iter().flatten();
        let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
        rules.map(|rule| Ok(serde_json::from_value(rule.clone())?)).collect()
    }

    /// How many series a query has found at any time since then.
    pub async fn query_since(&self, query: &str, since: SystemTime) -> Result<usize> {
        let unix = |time: SystemTime| anyhow::Ok(time.duration_since(UNIX_EPOCH)?.as_secs());
        let (start, end) = (unix(since)?, unix(SystemTime::now())?);
        let query = escaped(query);
        let path =
            format!("/api/v1/query_range?query={query}&start={start}&end={end}&step={STEP_S}");
        let data: Value = self.ask(&path).await?;
        let found = data["result"].as_array().context("a range finds no list of series")?;
        Ok(found.len())
    }

    /// The values that a query finds now.
    pub async fn query(&self, query: &str) -> Result<Vec<f64>> {
        let path = format!("/api/v1/query?query={}", escaped(query));
        let data: Value = self.ask(&path).await?;
        ensure!(data["resultType"] == "vector", "{query} finds a {}", data["resultType"]);
        let found = data["result"].as_array().into_iter().flatten();
        found
            .map(|series| {
                let value = series["value"][1].as_str().context("a series without a value")?;
                value.parse().with_context(|| format!("{value:?} is no number"))
            })
            .collect()
    }
}

/// Steps of a question about a time that is past.
const STEP_S: u64 = 5;

fn config_of(targets: &Targets, rules: &Path) -> Value {
    let job = |name: &str, targets: &[String]| json!({"job_name": name, "static_configs": [{"targets": targets}]});
    json!({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [rules],
        "scrape_configs": [
            job("fairlead-hub", &targets.hub), job("fairlead-agent", &targets.agents),
        ],
    })
}

/// For a query in a URL.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let escape = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_survive_a_url() {
        assert_eq!(escaped("a{b=\"c d\"}+1"), "a%7Bb%3D%22c%20d%22%7D%2B1");
    }

    #[test]
    fn a_configuration_names_targets_and_rules() {
        let targets = Targets { hub: vec!["10.0.0.1:8080".into()], agents: Vec::new() };
        let config = config_of(&targets, Path::new("/r.yaml"));
        assert_eq!(config["rule_files"][0], "/r.yaml");
        let hub = &config["scrape_configs"][0]["static_configs"][0]["targets"];
        assert_eq!(*hub, json!(["10.0.0.1:8080"]));
    }
}
