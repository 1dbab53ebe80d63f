//! What an agent says of itself in ConfigMap `fairlead-agent-state`: all that a member's kubeconfig can
//! see of its join. Unknown words count as nothing said.

use fairlead_model::Json;

/// What the agent says of itself in ConfigMap `fairlead-agent-state`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AgentState {
    pub(crate) phase: Phase,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) member: String,
    /// Id of the join token that a refusal is about; empty when it does not say.
    pub(crate) token_id: String,
    pub(crate) plan: Plan,
}

/// How far an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Phase {
    /// It has said nothing.
    #[default]
    Silent,
    /// It asks the hub for a certificate.
    Enrolling,
    /// The hub said no.
    Refused,
    /// Its stream is up.
    Connected,
    /// It holds what its plan says.
    Applied,
}

/// Whether the agent has applied a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Plan {
    #[default]
    Awaited,
    Applied,
}

impl AgentState {
    pub(crate) fn read(map: Option<&Json>) -> Self {
        let text = |key: &str| {
            let text = map.and_then(|map| map["data"][key].as_str()).unwrap_or("");
            fairlead_model::id::printable(text)
        };
        let phase = match text("phase").as_str() {
            "Enrolling" => Phase::Enrolling,
            "Refused" => Phase::Refused,
            "Connected" => Phase::Connected,
            "Applied" => Phase::Applied,
            _ => Phase::Silent,
        };
        let plan = if text("plan-applied") == "true" { Plan::Applied } else { Plan::Awaited };
        let message = map.and_then(|map| map["data"]["message"].as_str()).unwrap_or("");
        // Longer than a name may be, shorter than a screen.
        let message = message.chars().filter(|c| !c.is_control()).take(500).collect();
        let (reason, member, token_id) = (text("reason"), text("member"), text("token-id"));
        Self { phase, reason, message, member, token_id, plan }
    }

    /// True when the hub refused this token, and not an earlier one: an agent that is being replaced
    /// may still speak.
    pub(crate) fn refuses(&self, token_id: &str) -> bool {
        self.phase == Phase::Refused && (self.token_id.is_empty() || self.token_id == token_id)
    }

    /// Reason and message, whichever there is.
    pub(crate) fn words(&self) -> String {
        match (self.reason.as_str(), self.message.as_str()) {
            ("", "") => "it has not said anything yet".into(),
            ("", message) => message.into(),
            (reason, "") => reason.into(),
            (reason, message) => format!("{reason}: {message}"),
        }
    }

    pub(crate) fn is_joined(&self) -> bool {
        self.phase == Phase::Applied
            || (self.phase == Phase::Connected && self.plan == Plan::Applied)
    }

    /// What is being waited for.
    pub(crate) fn awaited(&self) -> String {
        match self.phase {
            Phase::Silent => "waiting for the agent to start".into(),
            Phase::Enrolling if self.message.is_empty() => {
                "waiting for the hub to give a certificate".into()
            }
            Phase::Enrolling => {
                format!("waiting for the hub to give a certificate: {}", self.words())
            }
            Phase::Connected => "connected; waiting for the first plan to be applied".into(),
            Phase::Refused | Phase::Applied => self.words(),
        }
    }
}
