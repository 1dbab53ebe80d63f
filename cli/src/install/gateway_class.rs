//! Which class the Gateways have that Fairlead creates in a member.
//!
//! Proposes the only accepted one and never chooses between several. The hub's own class does not count.

use fairlead_crds::keys;
use fairlead_model::Json;

use crate::failure::Failure;
use crate::output;

/// Which class Gateways that Fairlead creates here have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// This one.
    Take {
        /// Name.
        name: String,
        /// What is odd about it.
        warning: Option<String>,
    },
    /// None, and why.
    None(String),
}

pub(crate) fn choose_class(classes: &[Json], asked: Option<&str>) -> Result<Choice, Failure> {
    let name = |class: &Json| class["metadata"]["name"].as_str().unwrap_or("").to_owned();
    // The hub's own class is for global gateways; nothing serves it in a member.
    let served: Vec<&Json> = classes
        .iter()
        .filter(|class| class["spec"]["controllerName"] != keys::CONTROLLER_NAME)
        .collect();
    if let Some(asked) = asked {
        let Some(class) = served.iter().find(|class| name(class) == asked) else {
            let names = output::list(served.iter().map(|class| name(class)));
            let what =
                format!("cannot use GatewayClass {:?}", fairlead_model::id::printable(asked));
            return Err(Failure::failed(what, format!("not found; this cluster has: {names}"))
                .next("correct --gateway-class, or leave it out"));
        };
        let warning =
            (!is_accepted(class)).then(|| "not accepted by its controller yet".to_owned());
        return Ok(Choice::Take { name: asked.to_owned(), warning });
    }
    let accepted: Vec<String> =
        served.iter().filter(|class| is_accepted(class)).map(|class| name(class)).collect();
    Ok(match accepted.as_slice() {
        [one] => Choice::Take { name: one.clone(), warning: None },
        [] => Choice::None("no GatewayClass is accepted by a controller".into()),
        several => Choice::None(format!(
            "several GatewayClasses are accepted ({}); choose one with --gateway-class",
            several.join(", ")
        )),
    })
}

fn is_accepted(class: &Json) -> bool {
    let conditions = class["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Accepted" && c["status"] == "True")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_class(name: &str, accepted: bool) -> Json {
        let status = if accepted { "True" } else { "Unknown" };
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
            "metadata": {"name": name}, "spec": {"controllerName": "example.com/gateway"},
            "status": {"conditions": [{"type": "Accepted", "status": status}]}})
    }

    #[test]
    fn the_only_accepted_class_is_proposed() {
        let hubs = json!({"metadata": {"name": "fairlead"}, "spec": {"controllerName": "fairlead.dev/hub"},
            "status": {"conditions": [{"type": "Accepted", "status": "True"}]}});
        let one = [mk_class("eg", true), mk_class("old", false), hubs];
        let take = |name: &str| Choice::Take { name: name.into(), warning: None };
        assert_eq!(choose_class(&one, None).unwrap(), take("eg"));
        let two = [mk_class("eg", true), mk_class("traefik", true)];
        assert!(
            matches!(choose_class(&two, None).unwrap(), Choice::None(why) if why.contains("eg, traefik"))
        );
        assert_eq!(choose_class(&two, Some("traefik")).unwrap(), take("traefik"));
        assert!(matches!(choose_class(&[], None).unwrap(), Choice::None(_)));
        let failure = choose_class(&two, Some("x")).unwrap_err();
        assert!(failure.for_people().contains("eg,traefik"));
    }
}
