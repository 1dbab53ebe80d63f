//! A DNS client of our own, for many queries and for what `dig` cannot time.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, RecordType,
        rdata::opt::{ClientSubnet, EdnsOption},
    },
};
use tokio::net::UdpSocket;

const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// One question.
#[derive(Clone, Debug)]
pub struct Question {
    name: Name,
    kind: RecordType,
    subnet: Option<(IpAddr, u8)>,
}

impl Question {
    pub fn new(name: &str, kind: RecordType) -> Result<Self> {
        let mut name = Name::from_ascii(name).with_context(|| format!("name {name}"))?;
        name.set_fqdn(true);
        Ok(Self { name, kind, subnet: None })
    }

    pub fn address(name: &str) -> Result<Self> {
        Self::new(name, RecordType::A)
    }

    /// Tells the client's network.
    pub fn from(self, network: IpAddr, length: u8) -> Self {
        Self { subnet: Some((network, length)), ..self }
    }

    fn message(&self, id: u16) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        // As every client does; resolvers refuse whoever does not.
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(self.name.clone(), self.kind));
        if let Some((network, length)) = self.subnet {
            let mut edns = Edns::new();
            edns.set_max_payload(1_232);
            let subnet = ClientSubnet::new(network, length, 0);
            edns.options_mut().insert(EdnsOption::Subnet(subnet));
            message.set_edns(edns);
        }
        message
    }
}

/// One socket to one server.
pub struct Resolver {
    socket: UdpSocket,
    id: u16,
}

impl Resolver {
    pub async fn to(server: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0").await?;
        socket.connect(server).await?;
        Ok(Self { socket, id: 0 })
    }

    pub async fn ask(&mut self, question: &Question) -> Result<Message> {
        self.id = self.id.wrapping_add(1);
        self.socket.send(&question.message(self.id).to_vec()?).await?;
        let mut buffer = [0; 4_096];
        loop {
            let received = tokio::time::timeout(ANSWER_LIMIT, self.socket.recv(&mut buffer));
            let len = received.await.context("no answer in time")??;
            let answer = Message::from_vec(&buffer[..len])?;
            if answer.metadata.id == self.id {
                return Ok(answer);
            }
        }
    }

    /// The addresses of an answer that is no error.
    pub async fn addresses(&mut self, question: &Question) -> Result<BTreeSet<IpAddr>> {
        let answer = self.ask(question).await?;
        let code = answer.metadata.response_code;
        ensure!(code == ResponseCode::NoError, "{} is answered with {code}", question.name);
        Ok(answer.answers.iter().filter_map(|record| record.data.ip_addr()).collect())
    }
}

/// The serial of a zone at a server.
pub async fn serial(server: SocketAddr, zone: &str) -> Result<u32> {
    let question = Question::new(zone, RecordType::SOA)?;
    let answer = Resolver::to(server).await?.ask(&question).await?;
    let soa = answer.answers.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.serial),
        _ => None,
    });
    soa.with_context(|| format!("{server} has no SOA of {zone}"))
}
