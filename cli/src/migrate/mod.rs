//! Ingresses → global Gateway, HTTPRoutes and ServiceExports, and what a person has to look at.
//!
//! Pure: objects in, objects and findings out. Nothing is guessed: an annotation that is not in the
//! table of [`annotation`] is listed, a path that cannot be said in the Gateway API is left out and
//! listed. `ingress2gateway` converts for one cluster; here backends become ServiceImports and all
//! routes share a global gateway.

mod annotation;
mod canary;
mod gateway;
mod path;

use std::collections::{BTreeMap, BTreeSet};

use fairlead_crds::keys;
use fairlead_model::{Json, NsName};
use serde::Serialize;
use serde_json::json;

use self::annotation::Settings;

/// Where converted routes attach.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The global gateway.
    pub(crate) gateway: NsName,
}

/// How much a person has to do about a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Weight {
    /// Something is missing: a person must do it.
    Person,
    /// It works, but not quite as before.
    Differs,
    /// It has no meaning any more, or is done elsewhere.
    Dropped,
}

/// Something to know about an Ingress.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Finding {
    /// Namespace and name of the Ingress.
    pub(crate) ingress: String,
    /// How much there is to do.
    pub(crate) weight: Weight,
    /// What.
    pub(crate) message: String,
}

/// What Ingresses come to.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Migrated {
    /// Objects for the hub.
    pub(crate) hub: Vec<Json>,
    /// Objects for each member that has the services.
    pub(crate) member: Vec<Json>,
    /// What to know.
    pub(crate) findings: Vec<Finding>,
    /// Ingresses that were read.
    pub(crate) ingresses: usize,
}

/// Ports of Services by name, where they are known.
type Ports = BTreeMap<NsName, BTreeMap<String, u16>>;

/// Converts every Ingress among the objects; Services among them resolve names of ports.
pub(crate) fn migrate(objects: &[Json], options: &Options) -> Migrated {
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let ports: Ports = of_kind("Service").filter_map(ports_of).collect();
    let mut ingresses: Vec<&Json> = of_kind("Ingress").collect();
    ingresses.sort_by_key(|ingress| name_of(ingress));
    let mut work = Work { ports: &ports, out: Migrated::default(), routes: Vec::new() };
    work.out.ingresses = ingresses.len();
    let mut hosts = gateway::Hosts::default();
    let mut exports: BTreeSet<NsName> = BTreeSet::new();
    let mut canaries = Vec::new();
    for ingress in ingresses {
        let read = Ingress::read(ingress, &mut work.out.findings);

        if read.settings.canary.is_some() {
            canaries.push(read);
            continue;
        }
        for host in hosts.add(&read) {
            let message =
                format!("{host} is to be HTTPS only, but names no Secret with a certificate");
            work.say(&read, Weight::Person, message);
        }
        work.convert(&read, &mut exports);
    }
    for read in canaries {
        canary::merge(&read, &mut work, &mut exports);
    }
    let Work { mut out, routes, .. } = work;
    out.hub.push(hosts.gateway(options));
    out.hub.extend(routes.into_iter().map(|route| route.object(&hosts, options)));
    out.hub.extend(hosts.redirects(options));
    out.member.extend(exports.iter().map(export));
    out.member.extend(hosts.grants(options));
    out.findings.sort();
    out.findings.dedup();
    out
}

fn name_of(object: &Json) -> NsName {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    let namespace = match text("namespace") {
        "" => "default",
        namespace => namespace,
    };
    NsName::new(namespace, text("name"))
}

fn ports_of(service: &Json) -> Option<(NsName, BTreeMap<String, u16>)> {
    let ports = service["spec"]["ports"].as_array()?.iter().filter_map(|port| {
        let number = u16::try_from(port["port"].as_u64()?).ok()?;
        Some((port["name"].as_str().unwrap_or_default().to_owned(), number))
    });
    Some((name_of(service), ports.collect()))
}

fn export(service: &NsName) -> Json {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"namespace": &*service.namespace, "name": &*service.name},
    })
}

/// An Ingress with its annotations read.
struct Ingress<'a> {
    name: NsName,
    spec: &'a Json,
    settings: Settings,
}

impl<'a> Ingress<'a> {
    fn read(object: &'a Json, findings: &mut Vec<Finding>) -> Self {
        let name = name_of(object);
        let empty = serde_json::Map::new();
        let annotations = object["metadata"]["annotations"].as_object().unwrap_or(&empty);
        let mut told = Vec::new();
        let settings = annotation::read(annotations, &mut told);
        let say = |(weight, message)| Finding { ingress: name.to_string(), weight, message };
        findings.extend(told.into_iter().map(say));
        Self { name, spec: &object["spec"], settings }
    }

    fn rules(&self) -> Vec<&'a Json> {
        self.spec["rules"].as_array().into_iter().flatten().collect()
    }
}

/// A route in the making: one host of one Ingress.
struct Draft {
    ingress: NsName,
    name: String,
    hostnames: Vec<String>,
    rules: Vec<Json>,
}

impl Draft {
    fn object(self, hosts: &gateway::Hosts, options: &Options) -> Json {
        let mut spec = json!({
            "parentRefs": hosts.parents(&self.hostnames, options),
            "rules": self.rules,
        });
        if !self.hostnames.is_empty() {
            spec["hostnames"] = json!(self.hostnames);
        }
        route(&self.ingress.namespace, &self.name, &spec)
    }
}

fn route(namespace: &str, name: &str, spec: &Json) -> Json {
    json!({
        "apiVersion": format!("{}/v1", keys::GATEWAY_GROUP), "kind": "HTTPRoute",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    })
}

/// Most rules of a route, as the Gateway API says.
const RULES_MAX: usize = 16;

struct Work<'a> {
    ports: &'a Ports,
    out: Migrated,
    routes: Vec<Draft>,
}

impl Work<'_> {
    fn say(&mut self, ingress: &Ingress<'_>, weight: Weight, message: impl Into<String>) {
        let (ingress, message) = (ingress.name.to_string(), message.into());
        self.out.findings.push(Finding { ingress, weight, message });
    }

    fn convert(&mut self, ingress: &Ingress<'_>, exports: &mut BTreeSet<NsName>) {
        let mut hosts: Vec<(Option<&str>, Vec<Json>)> = Vec::new();
        for rule in ingress.rules() {
            let host = rule["host"].as_str().filter(|host| !host.is_empty());
            let paths = rule["http"]["paths"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut rules: Vec<Json> =
                paths.iter().filter_map(|path| self.rule(ingress, path, exports)).collect();
            if let Some(root) = &ingress.settings.app_root {
                rules.push(path::app_root(root));
            }
            match hosts.iter_mut().find(|(known, _)| *known == host) {
                Some((_, known)) => known.extend(rules),
                None => hosts.push((host, rules)),
            }
        }
        if let Some(backend) = ingress.spec.get("defaultBackend").filter(|b| b.is_object()) {
            let all = json!({"path": "/", "pathType": "Prefix", "backend": backend});
            let rule = self.rule(ingress, &all, exports);
            hosts.push((None, rule.into_iter().collect()));
        }
        for (host, rules) in hosts {
            self.add_routes(ingress, host, rules);
        }
    }

    /// As many routes as the rules of a host need.
    fn add_routes(&mut self, ingress: &Ingress<'_>, host: Option<&str>, rules: Vec<Json>) {
        let mut hostnames: Vec<String> = host.iter().map(|host| (*host).to_owned()).collect();
        if host.is_some() {
            hostnames.extend(ingress.settings.aliases.iter().cloned());
        }
        for rules in rules.chunks(RULES_MAX) {
            let taken = self.routes.iter().filter(|route| route.ingress == ingress.name).count();
            let name = match taken {
                0 => ingress.name.name.to_string(),
                more => format!("{}-{}", ingress.name.name, more + 1),
            };
            self.routes.push(Draft {
                ingress: ingress.name.clone(),
                name,
                hostnames: hostnames.clone(),
                rules: rules.to_vec(),
            });
        }
    }

    /// One path; none when it cannot be said.
    fn rule(
        &mut self,
        ingress: &Ingress<'_>,
        written: &Json,
        exports: &mut BTreeSet<NsName>,
    ) -> Option<Json> {
        let found = match path::read(written, &ingress.settings) {
            Ok(found) => found,
            Err(why) => {
                self.say(ingress, Weight::Person, format!("{why}; the path is left out"));
                return None;
            }
        };
        for remark in found.remarks {
            self.say(ingress, Weight::Differs, remark);
        }
        let mut filters = found.filters;
        filters.extend(ingress.settings.filters());
        let redirects = filters.iter().any(|filter| filter["type"] == "RequestRedirect");
        let mut rule = json!({"matches": [{"path": found.path}]});
        if !redirects {
            let backend = self.backend(ingress, &written["backend"])?;
            exports.insert(NsName::new(
                &ingress.name.namespace,
                backend["name"].as_str().unwrap_or_default(),
            ));
            rule["backendRefs"] = json!([backend]);
            ingress.settings.time(&mut rule);
        }
        if !filters.is_empty() {
            rule["filters"] = json!(filters);
        }
        Some(rule)
    }

    /// The ServiceImport that stands for a Service everywhere.
    fn backend(&mut self, ingress: &Ingress<'_>, written: &Json) -> Option<Json> {
        let service = &written["service"];
        let Some(name) = service["name"].as_str() else {
            self.say(ingress, Weight::Person, "a backend is no Service; the path is left out");
            return None;
        };
        let number = service["port"]["number"].as_u64().and_then(|port| u16::try_from(port).ok());
        let named = service["port"]["name"].as_str();
        let known = self.ports.get(&NsName::new(&ingress.name.namespace, name));
        let port = number.or_else(|| known?.get(named?).copied());
        let Some(port) = port else {
            let message = format!(
                "port {:?} of Service {name} has a name and the Service is not among the objects; \
                 the path is left out",
                named.unwrap_or_default()
            );
            self.say(ingress, Weight::Person, message);
            return None;
        };
        Some(json!({
            "group": keys::MCS_GROUP, "kind": "ServiceImport", "name": name, "port": port,
        }))
    }
}

#[cfg(test)]
mod tests;
