//! Streams between agents and hubs, as packets on their way.
//!
//! A stream keeps its order and loses nothing while it stands: what a fault holds up comes later. Only
//! mangled streams duplicate and reorder, which no honest transport does. Who is cut off is not told.

use std::collections::VecDeque;

use fairlead_model::session::{FromAgent, FromHub};

use crate::fault::Node;

/// What travels on a stream.
#[derive(Debug, Clone)]
pub enum Packet {
    /// From an agent.
    Agent(Box<FromAgent>),
    /// From a hub.
    Hub(Box<FromHub>),
    /// The end.
    Close,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// From agent to hub.
    Up,
    /// From hub to agent.
    Down,
}

/// One direction of a stream.
#[derive(Debug, Default)]
pub struct Pipe {
    /// When the last packet arrives.
    pub last_at: u64,
    /// What cannot leave.
    pub stalled: VecDeque<Packet>,
    /// Whether its reader still reads.
    pub is_read: bool,
}

/// A stream.
#[derive(Debug)]
pub struct Conn {
    /// The agent's member.
    pub member: usize,
    /// The agent's process.
    pub generation: u64,
    /// Index of the hub.
    pub hub: usize,
    /// To the hub.
    pub up: Pipe,
    /// To the agent.
    pub down: Pipe,
}

impl Conn {
    /// A stream that was just opened.
    pub fn new(member: usize, generation: u64, hub: usize) -> Self {
        let pipe = || Pipe { is_read: true, ..Pipe::default() };
        Self { member, generation, hub, up: pipe(), down: pipe() }
    }

    /// One direction.
    pub fn pipe(&mut self, way: Way) -> &mut Pipe {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    /// From where to where a direction goes.
    pub fn ends(&self, way: Way) -> (Node, Node) {
        match way {
            Way::Up => (Node::Member(self.member), Node::Hub),
            Way::Down => (Node::Hub, Node::Member(self.member)),
        }
    }
}
