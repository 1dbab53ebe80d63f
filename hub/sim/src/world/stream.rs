//! Streams between agents and hubs: dials, packets on their way, ends.

use fairlead_agent_core::session::Input;
use fairlead_hub_core::session::Identity;

use super::{DIAL_MS, Event, World};
use crate::fault::Node;
use crate::net::{Conn, Packet, Way};
use crate::setup::uid;

impl World {
    pub(super) fn latency(&mut self, a: Node, b: Node) -> u64 {
        let place = |node: Node| match node {
            Node::Hub => 7,
            Node::Member(m) => m as u64,
        };
        // The same for both directions, different for every pair.
        let base = 2 + (place(a) * 11 + place(b) * 11) % 29;
        base + self.rng.below(3) + self.faults.delay_ms(a, b)
    }

    pub(super) fn send(&mut self, id: u64, way: Way, packet: Packet) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.pipe(way).stalled.push_back(packet);
        self.release(id, way);
    }

    /// Lets go what is not held up any more.
    pub(super) fn release(&mut self, id: u64, way: Way) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, to) = conn.ends(way);
        let agent_cut = self.faults.is_agent_cut(conn.member);
        if agent_cut || self.faults.is_cut(from, to) {
            return;
        }
        let stalled = match self.conns.get_mut(&id) {
            Some(conn) => std::mem::take(&mut conn.pipe(way).stalled),
            None => return,
        };
        for packet in stalled {
            let lost = self.faults.loss_percent();
            let mut at = self.now + self.latency(from, to);
            while self.rng.percent(lost) {
                at += 200;
            }
            if self.faults.are_streams_mangled() && !matches!(packet, Packet::Close) {
                at += if self.rng.percent(20) { self.rng.below(1_500) } else { 0 };
                if self.rng.percent(20) {
                    let again = at + self.rng.below(8_000);
                    self.queue.push(again, Event::Arrive(id, way, packet.clone()));
                }
                self.queue.push(at, Event::Arrive(id, way, packet));
                continue;
            }
            let Some(conn) = self.conns.get_mut(&id) else { return };
            let pipe = conn.pipe(way);
            at = at.max(pipe.last_at);
            pipe.last_at = at;
            self.queue.push(at, Event::Arrive(id, way, packet));
        }
    }

    /// One side ends a stream: it hears nothing any more, and the other side learns of it.
    pub(super) fn close(&mut self, id: u64, from: Way) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let other = match from {
            Way::Up => Way::Down,
            Way::Down => Way::Up,
        };
        conn.pipe(other).is_read = false;
        conn.pipe(other).stalled.clear();
        self.send(id, from, Packet::Close);
        self.forget(id);
    }

    pub(super) fn forget(&mut self, id: u64) {
        if self.conns.get(&id).is_some_and(|conn| !conn.up.is_read && !conn.down.is_read) {
            self.conns.remove(&id);
        }
    }

    pub(super) fn arrive(&mut self, id: u64, way: Way, packet: Packet) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (member, hub, generation) = (conn.member, conn.hub, conn.generation);
        if !conn.pipe(way).is_read {
            return;
        }
        if matches!(packet, Packet::Close) {
            conn.pipe(way).is_read = false;
            self.forget(id);
        }
        match (way, packet) {
            (Way::Up, Packet::Agent(message)) => {
                self.with_hub(hub, |hub, now| hub.message(id, *message, now));
            }
            (Way::Up, _) => self.with_hub(hub, |hub, now| {
                hub.disconnected(id, now);
                Vec::new()
            }),
            (Way::Down, packet) => {
                let agent = self.agents[member].as_ref();
                if agent.is_none_or(|a| a.generation != generation || a.conn != Some(id)) {
                    return;
                }
                match packet {
                    Packet::Hub(message) => self.hear(member, *message),
                    Packet::Agent(_) | Packet::Close => {
                        self.tell_agent(member, Input::Disconnected);
                    }
                }
            }
        }
    }

    pub(super) fn dialled(&mut self, member: usize, generation: u64, began: u64) {
        let Some(agent) = &self.agents[member] else { return };
        if agent.generation != generation {
            return;
        }
        let cut = self.faults.is_agent_cut(member)
            || self.faults.is_apart(Node::Member(member), Node::Hub);
        if cut {
            if self.now - began >= DIAL_MS {
                return self.tell_agent(member, Input::Disconnected);
            }
            // A handshake is tried again and again by the kernel.
            let at = self.now + self.rng.range(1_000, 3_000);
            return self.queue.push(at, Event::Dialled { member, generation, began });
        }
        let second = self.hubs[1].is_some() && self.rng.percent(50);
        let at = usize::from(second);
        let id = self.setup.members[member].id.clone();
        let identity = Identity { uid: uid(&id), member: id };
        if !self.hubs[at].as_ref().is_some_and(|hub| hub.is_registered(&identity)) {
            return self.tell_agent(member, Input::Disconnected);
        }
        let conn = self.number();
        self.conns.insert(conn, Conn::new(member, generation, at));
        self.with_hub(at, |hub, now| {
            hub.connected(conn, identity, now);
            Vec::new()
        });
        if let Some(agent) = &mut self.agents[member] {
            agent.conn = Some(conn);
        }
        self.tell_agent(member, Input::Connected);
    }
}
