//! Why the plan is as it is: structured, for statuses, metrics and `explain`.

use std::collections::BTreeMap;
use std::sync::Arc;

use fairlead_model::dns::NameServer;
use fairlead_model::health::MemberState;
use fairlead_model::policy::TrafficState;
use fairlead_model::{MemberId, Millis, Note, NsName, Reason, RouteKey, Way};

/// Why the plan is as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// A person must act: refused plans, broken rules, conflicts.
    pub alarms: Vec<Note>,
    /// What stands in a member's way, by member.
    pub members: BTreeMap<MemberId, Vec<Note>>,
    /// Members that do not serve a global gateway, and why.
    pub gateways_refused: BTreeMap<NsName, BTreeMap<MemberId, Note>>,
    /// By route. What was left out of a route is in its decision's notes.
    pub routes: BTreeMap<RouteKey, RouteReport>,
    /// Where members are and what they are held for.
    pub places: BTreeMap<MemberId, Place>,
    /// Why nothing may cross to a member by SNI; absent = it may.
    pub sni_refused: BTreeMap<MemberId, Reason>,
    /// By DNSPolicy.
    pub dns: BTreeMap<NsName, DnsReport>,
}

/// What is published of a DNSPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsReport {
    /// Names that are answered.
    pub names: usize,
    /// Names that are not, and why.
    pub refused: Vec<Note>,
    /// Who writes for ExternalDNS, where that publishes.
    pub publisher: Option<MemberId>,
    /// Servers of its zone.
    pub servers: Vec<NameServer>,
    /// What else stands in the way.
    pub notes: Vec<Note>,
}

/// Why a route is as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RouteReport {
    /// The decision before was kept, for this reason.
    pub kept: Option<Reason>,
    /// By rule, by backend; none = not a global backend.
    pub verdicts: Vec<Vec<Option<Arc<Verdicts>>>>,
    /// The same of the rules that one member tries.
    pub verdicts_tried: Vec<Vec<Option<Arc<Verdicts>>>>,
    /// How far a change of it is, if it is not everywhere.
    pub rollout: Option<(Reason, String)>,
}

/// May a member serve a backend? By member.
pub type Verdicts = BTreeMap<MemberId, Verdict>;

/// May a member serve a backend?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// For traffic that enters by its own gateway.
    pub local: Answer,
    /// For traffic that enters elsewhere and comes by its door.
    pub remote: Answer,
    /// How that crosses.
    pub way: Way,
}

/// May it?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Yes.
    Able,
    /// Yes; it was out and is given that much.
    Ramping(Ramp),
    /// It was out and is back: it takes nothing while others can serve, until then; none = not known.
    Waiting(Option<Millis>),
    /// It is a candidate, so that it can come back at once, but takes nothing now.
    Out(Reason),
    /// No.
    No(Reason),
}

/// How much a member that comes back is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ramp {
    /// Share of its traffic, below 100.
    pub percent: u8,
    /// When it gets the next step.
    pub next_at: Millis,
    /// When it gets all.
    pub full_at: Millis,
}

impl Verdict {
    /// May `member` serve traffic that enters at `entry`?
    pub fn answer(&self, entry: (&MemberId, &Place), member: &MemberId) -> Answer {
        if entry.0 == member {
            return self.local;
        }
        match self.remote {
            // No door would let the entry's gateway in.
            Answer::Able | Answer::Ramping(_) | Answer::Waiting(_) | Answer::Out(_)
                if !entry.1.has_crossing_ca =>
            {
                Answer::No(Reason::NoCrossingCa)
            }
            // Its gateway would send plain bytes to a door that wants TLS.
            Answer::Able | Answer::Ramping(_) | Answer::Waiting(_) | Answer::Out(_)
                if self.way == Way::Sni && !entry.1.wraps_streams =>
            {
                Answer::No(Reason::UnsupportedFeature)
            }
            answer => answer,
        }
    }
}

/// Where a member is and what it is held for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Region in force.
    pub region: Option<String>,
    /// Zone in force.
    pub zone: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it takes traffic.
    pub traffic: TrafficState,
    /// What the hub holds it for.
    pub state: MemberState,
    /// Its crossing CA is known, so that other members' doors can know its gateway.
    pub has_crossing_ca: bool,
    /// Its gateways show their certificate also where no HTTP is spoken, and for mirrored copies.
    pub wraps_streams: bool,
}
