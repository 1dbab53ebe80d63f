//! The hub's read-only API, reached through the API server's service proxy.
//!
//! So the hub needs no second login: who may use the proxy of its Service may look. Tells apart: the
//! hub is not installed, not ready, the caller may not look, the thing is not there.

use fairlead_crds::keys;
use fairlead_model::history::{DiffView, HistoryView};
use fairlead_model::view::{
    Explanation, FlowView, GatewayView, MemberView, RouteView, ServiceView, StatusView,
};
use fairlead_model::{MemberId, RouteKey};
use http::Method;
use serde::de::DeserializeOwned;

use crate::cluster::{Cluster, Kind, RequestError, encoded};
use crate::failure::Failure;

/// Port of the hub's Service that serves the API.
const PORT: &str = "http-admin";

/// The hub's API.
pub(crate) struct HubApi<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
}

impl<'a> HubApi<'a> {
    /// The hub in a namespace of a cluster.
    pub(crate) fn new(cluster: &'a Cluster, namespace: &'a str) -> Self {
        Self { cluster, namespace }
    }

    /// How all is.
    pub(crate) async fn status(&self) -> Result<StatusView, Failure> {
        self.read("status", "the status").await
    }

    /// Members.
    pub(crate) async fn members(&self) -> Result<Vec<MemberView>, Failure> {
        self.read("members", "members").await
    }

    /// Global gateways in members.
    pub(crate) async fn gateways(&self) -> Result<Vec<GatewayView>, Failure> {
        self.read("gateways", "gateways").await
    }

    /// Exported services.
    pub(crate) async fn services(&self) -> Result<Vec<ServiceView>, Failure> {
        self.read("services", "services").await
    }

    /// Global routes.
    pub(crate) async fn routes(&self) -> Result<Vec<RouteView>, Failure> {
        self.read("routes", "routes").await
    }

    /// What flows at present.
    pub(crate) async fn traffic(&self) -> Result<Vec<FlowView>, Failure> {
        self.read("traffic", "traffic").await
    }

    /// What was decided before; `query` says of what and ends in `&` if it says anything.
    pub(crate) async fn history(&self, query: &str, limit: u16) -> Result<HistoryView, Failure> {
        self.read(&format!("history?{query}limit={limit}"), "the history").await
    }

    /// What differs between two revisions.
    pub(crate) async fn diff(&self, query: &str) -> Result<DiffView, Failure> {
        self.read(&format!("diff?{query}"), "the difference").await
    }

    /// Why a route's traffic goes where it goes.
    pub(crate) async fn explain(
        &self,
        route: &RouteKey,
        from: Option<&MemberId>,
    ) -> Result<Explanation, Failure> {
        let parts = [route.kind.as_str(), &route.name.namespace, &route.name.name].map(encoded);
        let from = from.map(|member| format!("?from={member}")).unwrap_or_default();
        self.read(&format!("explain/{}{from}", parts.join("/")), &route.to_string()).await
    }

    /// Whether the hub says that it is ready; the text says why not.
    pub(crate) async fn ready(&self) -> Result<(), String> {
        match self.cluster.send(Method::GET, &self.path("readyz"), None).await {
            Ok(_) => Ok(()),
            // The answer of a probe is text, not JSON; what matters is that it came.
            Err(RequestError::Unreachable(why)) if why.starts_with("not JSON") => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn read<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, Failure> {
        let path = self.path(&format!("api/v1/{path}"));
        let answer = match self.cluster.send(Method::GET, &path, None).await {
            Ok(answer) => answer,
            Err(error) => return Err(self.failure(what, error).await),
        };
        serde_json::from_value(answer).map_err(|error| {
            Failure::failed(format!("cannot read {what} of the hub"), error).next(
                "hub and fairlead are of versions that do not fit; compare `fairlead version` with \
                 the image of Deployment fairlead-hub",
            )
        })
    }

    fn path(&self, path: &str) -> String {
        let (namespace, hub) = (self.namespace, keys::HUB);
        format!("/api/v1/namespaces/{namespace}/services/{hub}:{PORT}/proxy/{path}")
    }

    async fn failure(&self, what: &str, error: RequestError) -> Failure {
        let failure = |why: String, next: &str| {
            Failure::failed(format!("cannot read {what} of the hub"), why).next(next)
        };
        let home = self.namespace;
        let logs =
            format!("see `kubectl -n {home} get pods` and the logs of Deployment {}", keys::HUB);
        match error.code() {
            None => failure(error.to_string(), "check --kubeconfig, --context and the network"),
            Some(401) => failure(error.to_string(), "log in again"),
            Some(403) => failure(
                error.to_string(),
                "ask an admin of the hub's cluster for `get` on services/proxy of Service fairlead-hub",
            ),
            Some(404) => self.not_found(what, &error, &logs).await,
            Some(503) => failure(format!("the hub is not ready: {error}"), &logs),
            Some(_) => failure(error.to_string(), &logs),
        }
    }

    /// A 404 comes from the hub (no such route) or from the API server (no hub, or no pod of it).
    async fn not_found(&self, what: &str, error: &RequestError, logs: &str) -> Failure {
        let (home, hub) = (self.namespace, keys::HUB);
        let what = format!("cannot read {what} of the hub");
        match self.cluster.get(&Kind::known("v1", "Service"), home, hub).await {
            Ok(None) => Failure::failed(what, format!("there is no hub: no Service {home}/{hub}"))
                .next(
                    "use the hub's --kubeconfig or --context, or install one with `fairlead init`",
                ),
            _ if error.to_string().starts_with("services ") => {
                Failure::failed(what, format!("Service {home}/{hub} leads to no pod")).next(logs)
            }
            _ => Failure::failed(what, error).next("see what there is with `fairlead get routes`"),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fake::Fake;

    const HOME: &str = keys::NAMESPACE;

    fn mk_service() -> fairlead_model::Json {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": keys::HUB, "namespace": HOME}})
    }

    async fn routes_of(fake: &Fake) -> Result<Vec<RouteView>, Failure> {
        HubApi::new(&fake.cluster(), HOME).routes().await
    }

    #[tokio::test]
    async fn what_the_hub_answers_is_read() {
        let fake = Fake::new([mk_service()]);
        let route = json!({"route": "HTTPRoute/shop/cart", "hostnames": [], "gateways": [],
            "entries": {}, "notes": []});
        fake.hub("api/v1/routes", 200, json!([route]));
        assert_eq!(routes_of(&fake).await.unwrap()[0].route.to_string(), "HTTPRoute/shop/cart");
    }

    #[tokio::test]
    async fn no_hub_no_pod_and_not_ready_are_told_apart() {
        let why = |failure: Failure| failure.for_people();
        let fake = Fake::new([]);
        assert!(why(routes_of(&fake).await.unwrap_err()).contains("there is no hub"));
        let fake = Fake::new([mk_service()]);
        fake.hub("api/v1/routes", 404, json!({"message": "services \"fairlead-hub\" not found"}));
        assert!(why(routes_of(&fake).await.unwrap_err()).contains("leads to no pod"));
        fake.hub("api/v1/routes", 503, json!({"error": "waiting for members"}));
        assert!(
            why(routes_of(&fake).await.unwrap_err()).contains("not ready: waiting for members")
        );
        fake.hub("api/v1/routes", 200, json!([{"route": 1}]));
        assert!(why(routes_of(&fake).await.unwrap_err()).contains("versions that do not fit"));
    }
}
