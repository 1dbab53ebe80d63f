//! k: what the agent's ServiceAccount may do in its own cluster, asked of that cluster's authorizer.

use anyhow::{Context, Result};
use fairlead_crds::keys;
use k8s_openapi::api::{
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
    core::v1::Secret,
};
use kube::{
    Api, Client, Config,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

use super::EAST;
use crate::{
    cluster::Cluster,
    fleet::Fleet,
    report::{Facts, Finding, figures},
};

/// Verb, group, resource (`/` before a subresource), namespace, name; empty namespace = the cluster.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str);

const HOME: &str = keys::NAMESPACE;
const SHOP: &str = "shop";

/// What it needs, some of each: a list of refusals alone would hold for an account without any right.
const MAY: &[Row] = &[
    ("get", "", "secrets", HOME, keys::SECRET_AGENT_IDENTITY),
    ("get", "", "secrets", HOME, keys::SECRET_CROSSING_CA),
    ("patch", "gateway.networking.k8s.io", "httproutes", SHOP, ""),
    ("list", "", "services", SHOP, ""),
    ("create", "gateway.networking.k8s.io", "referencegrants", SHOP, ""),
];

/// What it must not.
const MAY_NOT: &[Row] = &[
    ("get", "", "secrets", HOME, "somebody-elses"),
    ("get", "", "secrets", HOME, keys::SECRET_AGENT_BOOTSTRAP),
    ("list", "", "secrets", HOME, ""),
    ("watch", "", "secrets", HOME, ""),
    ("get", "", "secrets", SHOP, "shop-tls"),
    ("list", "", "secrets", "", ""),
    ("create", "", "secrets", SHOP, ""),
    ("get", "", "secrets", "kube-system", ""),
    ("get", "", "configmaps", SHOP, ""),
    ("patch", "", "configmaps", "kube-system", ""),
    ("list", "", "pods", SHOP, ""),
    ("create", "", "pods", HOME, ""),
    ("create", "", "pods/exec", HOME, ""),
    ("get", "", "pods/log", SHOP, ""),
    ("create", "apps", "deployments", HOME, ""),
    ("patch", "apps", "deployments", HOME, keys::AGENT),
    ("create", "batch", "jobs", HOME, ""),
    ("create", "", "serviceaccounts/token", HOME, keys::AGENT),
    ("create", "", "serviceaccounts", HOME, ""),
    ("impersonate", "", "users", "", ""),
    ("create", "rbac.authorization.k8s.io", "rolebindings", HOME, ""),
    ("patch", "rbac.authorization.k8s.io", "clusterroles", "", "fairlead-agent"),
    ("escalate", "rbac.authorization.k8s.io", "clusterroles", "", ""),
    ("bind", "rbac.authorization.k8s.io", "clusterroles", "", "cluster-admin"),
    ("create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "", ""),
    ("create", "certificates.k8s.io", "certificatesigningrequests", "", ""),
    ("patch", "apiextensions.k8s.io", "customresourcedefinitions", "", ""),
    ("patch", "gateway.networking.k8s.io", "gatewayclasses", "", ""),
    ("patch", "multicluster.x-k8s.io", "serviceexports", SHOP, ""),
    ("create", "multicluster.x-k8s.io", "serviceexports", SHOP, ""),
    ("patch", "", "nodes", "", ""),
    ("create", "", "namespaces", "", ""),
    ("delete", "", "namespaces", "", SHOP),
    ("create", "externaldns.k8s.io", "dnsendpoints", SHOP, ""),
];

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) {
    let name = "the agent's account may do what the chart lists; Secrets of others, Pods, rights and \
                consent are none of it";
    facts.look("k1", name, rights(fleet)).await;
}

fn account() -> String {
    format!("system:serviceaccount:{}:{}", keys::NAMESPACE, keys::AGENT)
}

async fn may(cluster: &Cluster, row: &Row) -> Result<bool> {
    let (verb, group, resource, namespace, name) = *row;
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(account()),
            groups: Some(vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{}", keys::NAMESPACE),
                "system:authenticated".to_owned(),
            ]),
            resource_attributes: Some(ResourceAttributes {
                verb: some(verb),
                group: some(group),
                resource: some(resource),
                subresource: some(subresource),
                namespace: some(namespace),
                name: some(name),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let reviews: Api<SubjectAccessReview> = Api::all(cluster.client());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

async fn rights(fleet: &Fleet<'_>) -> Result<Finding> {
    let east = fleet.world().member(EAST)?;
    let mut wrong = Vec::new();
    for (rows, wanted) in [(MAY, true), (MAY_NOT, false)] {
        for row in rows {
            if may(east, row).await? != wanted {
                wrong.push(format!("{row:?} is {}", !wanted));
            }
        }
    }
    let secrets = read_all_secrets(east).await?;
    Ok(Finding::new(
        wrong.is_empty() && secrets == "403",
        figures([
            ("may", json!(MAY.len())),
            ("may_not", json!(MAY_NOT.len())),
            ("otherwise", json!(wrong)),
            ("list_of_all_secrets", json!(secrets)),
        ]),
    ))
}

/// Not only asked, but done.
async fn read_all_secrets(cluster: &Cluster) -> Result<String> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).context("a kubeconfig")?;
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    config.auth_info.impersonate = Some(account());
    let secrets: Api<Secret> = Api::all(Client::try_from(config).context("a client")?);
    Ok(match secrets.list(&ListParams::default()).await {
        Ok(list) => format!("{} Secrets", list.items.len()),
        Err(kube::Error::Api(status)) => status.code.to_string(),
        Err(error) => format!("{error:#}"),
    })
}
