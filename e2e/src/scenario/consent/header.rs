//! h: what clients send through an entry, and what filters of global routes set.

use anyhow::Result;
use fairlead_crds::keys;
use serde_json::{Value, json};

use super::{EAST, LIMIT, SOUTH, WEST, attempt, attempt_everywhere, capability, entry_of};
use crate::{
    fleet::{Fleet, shop},
    object::ObjectKey,
    report::{Facts, Figures, Finding},
    scenario::spine::{route, route_key},
    wait::{self, Look},
};

/// The only answer that is right for what leads to the catalog.
const CATALOG: &str = "200 catalog west";

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    let name = "a client's capability of another service changes nothing";
    facts.look("h1", name, of_a_client(fleet)).await;
    let name = "a client's paths of our door reach the service, as any path does";
    facts.look("h2", name, paths(fleet)).await;
    let name = "a capability that a user's own filters set changes nothing";
    facts.look("h3", name, of_a_filter(fleet)).await;
    let name = "a global route may not name a member's door as a Service";
    facts.look("h4", name, named_in_the_hub(fleet)).await;
    Ok(())
}

/// What crosses to the catalog, with a header that would open the cart of the same member.
async fn of_a_client(fleet: &Fleet<'_>) -> Result<Finding> {
    let cart = capability(fleet, EAST, "cart", WEST).await?;
    let spellings: [&[(&str, &str)]; 3] = [
        &[(keys::HEADER_BACKEND, &cart)],
        &[("Fairlead-Backend", &cart), (keys::HEADER_BACKEND, &cart)],
        &[(keys::HEADER_BACKEND, "")],
    ];
    let mut more = Figures::new();
    let mut holds = true;
    for (at, headers) in spellings.into_iter().enumerate() {
        for name in [EAST, SOUTH] {
            let address = entry_of(fleet, name).await?;
            let tries = attempt(address, shop::HOST, shop::CATALOG, headers).await?;
            holds &= tries.are(&[CATALOG]);
            more.insert(format!("{at} through {name}"), tries.told());
        }
    }
    Ok(Finding::new(holds, more))
}

/// Through a route for all paths.
async fn paths(fleet: &Fleet<'_>) -> Result<Finding> {
    let mut more = Figures::new();
    let mut holds = true;
    for path in [keys::PATH_READINESS, keys::PATH_PROBE] {
        for name in [EAST, SOUTH] {
            let address = entry_of(fleet, name).await?;
            let tries = attempt(address, shop::HOST, path, &[]).await?;
            holds &= tries.are(&[CATALOG]);
            more.insert(format!("{path} through {name}"), tries.told());
        }
    }
    Ok(Finding::new(holds, more))
}

fn modifier(how: &str, value: &str) -> Value {
    let mut modifier = json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {}});
    modifier["requestHeaderModifier"][how] = json!([{"name": "Fairlead-Backend", "value": value}]);
    modifier
}

async fn of_a_filter(fleet: &Fleet<'_>) -> Result<Finding> {
    let hub = fleet.world().hub().objects();
    let cart = capability(fleet, EAST, "cart", WEST).await?;
    let mut more = Figures::new();
    let mut holds = true;
    for how in ["set", "add"] {
        let name = format!("forged-{how}");
        let path = format!("/{name}");
        let filters = json!([modifier(how, &cart)]);
        let mut asked = route(&name, &path, &[("catalog", 1)], &filters);
        asked["spec"]["rules"][0]["backendRefs"][0]["filters"] = json!([modifier(how, &cart)]);
        hub.apply(&asked).await?;
        let crossed = |seen: &shop::Seen| seen.status == 200 && seen.target() == WEST;
        fleet.wait_answers(&path, "from west", crossed).await?;
        // A route that is seconds old may fail once; it may never be answered by the cart.
        holds &= attempt_everywhere(fleet, &path, &[CATALOG, "500", "503"], &mut more).await?;
        hub.delete(&route_key(&name)).await?;
    }
    Ok(Finding::new(holds, more))
}

async fn named_in_the_hub(fleet: &Fleet<'_>) -> Result<Finding> {
    let hub = fleet.world().hub().objects();
    let mut asked = route("named", "/named", &[("catalog", 1)], &Value::Null);
    asked["spec"]["rules"][0]["backendRefs"] = json!([{
        "group": "", "kind": "Service", "name": keys::member_object(WEST),
        "namespace": keys::NAMESPACE, "port": 15443,
    }]);
    hub.apply(&asked).await?;
    let key = ObjectKey::of(&asked)?;
    let reason = wait::until("the reference to be refused", LIMIT, || async {
        let object = hub.get(&key).await?.unwrap_or_default();
        let text = object["status"].to_string();
        let refused = text.contains("RefNotPermitted");
        Ok(if refused { Look::Done("RefNotPermitted") } else { Look::Not(text) })
    })
    .await?;
    let name = route_key("named-global");
    for member in fleet.world().members() {
        wait::until("the route to be rendered", LIMIT, || async {
            let there = member.objects().get(&name).await?.is_some();
            Ok(if there { Look::Done(()) } else { Look::Not("it is not there".into()) })
        })
        .await?;
    }
    let mut more = Figures::new();
    more.insert("said".into(), json!(reason));
    // The root route's catalog answers until the route is live.
    wait::until("the route to be live", LIMIT, || async {
        let mut probe = Figures::new();
        let live = attempt_everywhere(fleet, "/named", &["500"], &mut probe).await?;
        Ok(if live { Look::Done(()) } else { Look::Not(format!("{probe:?}")) })
    })
    .await?;
    let holds = attempt_everywhere(fleet, "/named", &["500"], &mut more).await?;
    hub.delete(&key).await?;
    Ok(Finding::new(holds, more))
}
