//! What goes wrong, and what people do: states of the world that begin and end.
//!
//! Owns the list of what is in force and what follows from it; several may say the same, and the end
//! of one does not undo another. The words are those of scripts. Never acts.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use fairlead_model::NsName;

/// Where a process is: the hub, or a member by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    /// The hub.
    Hub,
    /// A member.
    Member(usize),
}

/// How a member lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It says that it reaches nobody's door.
    NobodyAnswers,
    /// It says that it reaches everybody's door.
    EverybodyAnswers,
    /// It says that its door is where another member's is.
    ForeignAddress,
}

/// Something that is in force for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// All processes of a member are killed; its machines refuse connections.
    Killed(usize),
    /// All of a member is gone; nothing answers.
    Blackholed(usize),
    /// The agent is killed.
    AgentDown(usize),
    /// The API server does not answer its agent.
    ApiDown(usize),
    /// The gateway, its door included, is killed.
    GatewayDown(usize),
    /// Nothing of the service is ready.
    Gone(usize, NsName),
    /// Packets of one direction are dropped.
    OneWay(Node, Node),
    /// Packets of both directions are dropped.
    Cut(Node, Node),
    /// Packets between these and all others are dropped.
    Split(Vec<Node>),
    /// The agent's own network is gone; that of its gateway is not.
    AgentCut(usize),
    /// The hub's process is killed.
    HubDown,
    /// The hub's store can be neither read nor written.
    StoreDown,
    /// The hub is killed and comes back with its store as it once was.
    StoreOld,
    /// Another hub answers some of the dials, with a store as it once was.
    SecondHub,
    /// So many of a hundred packets are lost, everywhere.
    Loss(u64),
    /// Packets between two take so many milliseconds more.
    Delay(Node, Node, u64),
    /// Streams duplicate messages and bring them out of order.
    Mangled,
    /// The API server takes seconds for each write.
    Slow(usize),
    /// A member lies.
    Lies(usize, Lie),
    /// A person drains a member.
    Drained(usize),
    /// The member's configuration refuses the export.
    Refused(usize, NsName),
    /// A person takes the export away.
    Unexported(usize, NsName),
    /// A person removes the member from the hub.
    Removed(usize),
    /// A person scales the service.
    Scaled(usize, NsName, u32),
    /// A person asks for failback of a member.
    Failback(usize),
}

/// Whether a member's machines run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// They do.
    On,
    /// They refuse.
    Killed,
    /// They do not answer.
    Gone,
}

/// What is in force.
#[derive(Debug, Clone, Default)]
pub struct Faults(BTreeMap<u32, Fault>);

impl Faults {
    /// Begins; the same number ends it.
    pub fn begin(&mut self, number: u32, fault: Fault) {
        self.0.insert(number, fault);
    }

    /// Ends what began under that number.
    pub fn end(&mut self, number: u32) {
        self.0.remove(&number);
    }

    fn any(&self, test: impl Fn(&Fault) -> bool) -> bool {
        self.0.values().any(test)
    }

    /// Whether packets of that direction are dropped.
    pub fn is_cut(&self, from: Node, to: Node) -> bool {
        self.any(|fault| match fault {
            Fault::OneWay(a, b) => (*a, *b) == (from, to),
            Fault::Cut(a, b) => (*a, *b) == (from, to) || (*b, *a) == (from, to),
            Fault::Split(side) => side.contains(&from) != side.contains(&to),
            Fault::Blackholed(m) => [from, to].contains(&Node::Member(*m)),
            _ => false,
        })
    }

    /// Whether no connection between two can work.
    pub fn is_apart(&self, a: Node, b: Node) -> bool {
        self.is_cut(a, b) || self.is_cut(b, a)
    }

    /// Whether the network of a member's agent is gone.
    pub fn is_agent_cut(&self, member: usize) -> bool {
        self.any(|fault| *fault == Fault::AgentCut(member))
    }

    /// Whether a member's machines run.
    pub fn power(&self, member: usize) -> Power {
        if self.any(|fault| *fault == Fault::Blackholed(member)) {
            Power::Gone
        } else if self.any(|fault| *fault == Fault::Killed(member)) {
            Power::Killed
        } else {
            Power::On
        }
    }

    /// Whether a member's agent should run. One that is out of reach runs on.
    pub fn agent_runs(&self, member: usize) -> bool {
        !self.any(|f| *f == Fault::AgentDown(member) || *f == Fault::Killed(member))
    }

    /// Whether the API server answers its agent.
    pub fn api_answers(&self, member: usize) -> bool {
        !self.any(|fault| *fault == Fault::ApiDown(member))
    }

    /// Whether a member's gateway runs.
    pub fn gateway_runs(&self, member: usize) -> bool {
        self.power(member) == Power::On && !self.any(|fault| *fault == Fault::GatewayDown(member))
    }

    /// Whether the hub's process should run.
    pub fn hub_runs(&self) -> bool {
        !self.any(|fault| matches!(fault, Fault::HubDown | Fault::StoreOld))
    }

    /// Whether the store was taken back to what it once was.
    pub fn any_store_old(&self) -> bool {
        self.any(|fault| *fault == Fault::StoreOld)
    }

    /// Whether a second hub runs.
    pub fn has_second_hub(&self) -> bool {
        self.any(|fault| *fault == Fault::SecondHub)
    }

    /// Whether the hub's store works.
    pub fn store_works(&self) -> bool {
        !self.any(|fault| *fault == Fault::StoreDown)
    }

    /// So many of a hundred packets are lost.
    pub fn loss_percent(&self) -> u64 {
        let lost = |fault: &Fault| if let Fault::Loss(percent) = fault { *percent } else { 0 };
        self.0.values().map(lost).max().unwrap_or(0)
    }

    /// Packets take so much longer.
    pub fn delay_ms(&self, a: Node, b: Node) -> u64 {
        let delay = |fault: &Fault| match fault {
            Fault::Delay(x, y, ms) if (*x, *y) == (a, b) || (*x, *y) == (b, a) => *ms,
            _ => 0,
        };
        self.0.values().map(delay).sum()
    }

    /// Whether streams mangle what they carry.
    pub fn are_streams_mangled(&self) -> bool {
        self.any(|fault| *fault == Fault::Mangled)
    }

    /// Whether a member's API server is slow.
    pub fn is_slow(&self, member: usize) -> bool {
        self.any(|fault| *fault == Fault::Slow(member))
    }

    /// How a member lies.
    pub fn lie(&self, member: usize) -> Option<Lie> {
        self.0.values().find_map(|fault| match fault {
            Fault::Lies(m, lie) if *m == member => Some(*lie),
            _ => None,
        })
    }

    /// Whether a person drained a member.
    pub fn is_drained(&self, member: usize) -> bool {
        self.any(|fault| *fault == Fault::Drained(member))
    }

    /// Whether a member refuses an export.
    pub fn is_refused(&self, member: usize, service: &NsName) -> bool {
        self.any(|f| matches!(f, Fault::Refused(m, s) if *m == member && s == service))
    }

    /// Whether an export was taken away.
    pub fn is_unexported(&self, member: usize, service: &NsName) -> bool {
        self.any(|f| matches!(f, Fault::Unexported(m, s) if *m == member && s == service))
    }

    /// Whether a member was removed.
    pub fn is_removed(&self, member: usize) -> bool {
        self.any(|fault| *fault == Fault::Removed(member))
    }

    /// Requests for failback of a member: each new number is a new request.
    pub fn failback(&self, member: usize) -> Option<u32> {
        let asked = |(number, fault): (&u32, &Fault)| {
            (*fault == Fault::Failback(member)).then_some(*number)
        };
        self.0.iter().filter_map(asked).max()
    }

    /// Endpoints of a service; `base` when nothing is said.
    pub fn total(&self, member: usize, service: &NsName, base: u32) -> u32 {
        let scaled = self.0.values().rev().find_map(|fault| match fault {
            Fault::Scaled(m, s, to) if *m == member && s == service => Some(*to),
            _ => None,
        });
        scaled.unwrap_or(base)
    }

    /// Ready endpoints of a service.
    pub fn ready(&self, member: usize, service: &NsName, base: u32) -> u32 {
        let gone = self.any(|f| matches!(f, Fault::Gone(m, s) if *m == member && s == service));
        if gone { 0 } else { self.total(member, service, base) }
    }
}

/// A fault in the words of scripts, with the members' names.
pub struct Named<'a>(pub &'a Fault, pub &'a [String]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |member: &usize| self.1[*member].as_str();
        let node = |node: &Node| match node {
            Node::Hub => "hub",
            Node::Member(member) => self.1[*member].as_str(),
        };
        match self.0 {
            Fault::Killed(m) => write!(f, "killed {}", name(m)),
            Fault::Blackholed(m) => write!(f, "blackholed {}", name(m)),
            Fault::AgentDown(m) => write!(f, "agent-down {}", name(m)),
            Fault::ApiDown(m) => write!(f, "api-down {}", name(m)),
            Fault::GatewayDown(m) => write!(f, "gateway-down {}", name(m)),
            Fault::Gone(m, service) => write!(f, "gone {} {service}", name(m)),
            Fault::OneWay(a, b) => write!(f, "one-way {} {}", node(a), node(b)),
            Fault::Cut(a, b) => write!(f, "cut {} {}", node(a), node(b)),
            Fault::Split(side) => {
                let side: Vec<&str> = side.iter().map(node).collect();
                write!(f, "split {}", side.join(" "))
            }
            Fault::AgentCut(m) => write!(f, "agent-cut {}", name(m)),
            Fault::HubDown => write!(f, "hub-down"),
            Fault::StoreDown => write!(f, "store-down"),
            Fault::StoreOld => write!(f, "store-old"),
            Fault::SecondHub => write!(f, "second-hub"),
            Fault::Loss(percent) => write!(f, "loss {percent}"),
            Fault::Delay(a, b, ms) => write!(f, "delay {} {} {ms}", node(a), node(b)),
            Fault::Mangled => write!(f, "mangled"),
            Fault::Slow(m) => write!(f, "slow {}", name(m)),
            Fault::Lies(m, lie) => write!(f, "lies {} {lie:?}", name(m)),
            Fault::Drained(m) => write!(f, "drained {}", name(m)),
            Fault::Refused(m, service) => write!(f, "refused {} {service}", name(m)),
            Fault::Unexported(m, service) => write!(f, "unexported {} {service}", name(m)),
            Fault::Removed(m) => write!(f, "removed {}", name(m)),
            Fault::Scaled(m, service, to) => write!(f, "scaled {} {service} {to}", name(m)),
            Fault::Failback(m) => write!(f, "failback {}", name(m)),
        }
    }
}

/// Reads a fault in the words of scripts.
///
/// # Errors
/// A text that says what has no meaning.
pub fn parse(text: &str, names: &[String]) -> Result<Fault, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let bad = || format!("{text:?} is no fault");
    let word = |at: usize| words.get(at).copied().ok_or_else(bad);
    let member = |at: usize| {
        let name = word(at)?;
        names.iter().position(|n| n == name).ok_or_else(|| format!("{name:?} is no member"))
    };
    let node = |at: usize| match word(at)? {
        "hub" => Ok(Node::Hub),
        _ => member(at).map(Node::Member),
    };
    let service = |at: usize| NsName::from_str(word(at)?).map_err(|error| error.to_string());
    let number = |at: usize| word(at)?.parse::<u32>().map_err(|error| error.to_string());
    Ok(match word(0)? {
        "killed" => Fault::Killed(member(1)?),
        "blackholed" => Fault::Blackholed(member(1)?),
        "agent-down" => Fault::AgentDown(member(1)?),
        "api-down" => Fault::ApiDown(member(1)?),
        "gateway-down" => Fault::GatewayDown(member(1)?),
        "gone" => Fault::Gone(member(1)?, service(2)?),
        "one-way" => Fault::OneWay(node(1)?, node(2)?),
        "cut" => Fault::Cut(node(1)?, node(2)?),
        "split" => Fault::Split((1..words.len()).map(node).collect::<Result<_, _>>()?),
        "agent-cut" => Fault::AgentCut(member(1)?),
        "hub-down" => Fault::HubDown,
        "store-down" => Fault::StoreDown,
        "store-old" => Fault::StoreOld,
        "second-hub" => Fault::SecondHub,
        "loss" => Fault::Loss(number(1)?.into()),
        "delay" => Fault::Delay(node(1)?, node(2)?, number(3)?.into()),
        "mangled" => Fault::Mangled,
        "slow" => Fault::Slow(member(1)?),
        "lies" => Fault::Lies(member(1)?, lie(word(2)?).ok_or_else(bad)?),
        "drained" => Fault::Drained(member(1)?),
        "refused" => Fault::Refused(member(1)?, service(2)?),
        "unexported" => Fault::Unexported(member(1)?, service(2)?),
        "removed" => Fault::Removed(member(1)?),
        "scaled" => Fault::Scaled(member(1)?, service(2)?, number(3)?),
        "failback" => Fault::Failback(member(1)?),
        _ => return Err(bad()),
    })
}

fn lie(word: &str) -> Option<Lie> {
    let lies = [Lie::NobodyAnswers, Lie::EverybodyAnswers, Lie::ForeignAddress];
    lies.into_iter().find(|lie| format!("{lie:?}") == word)
}
