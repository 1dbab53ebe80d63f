//! Identities at the agents' port: tokens, certificates that are renewed or expired, members that are gone, and
//! a change of the CA.

use fairlead_hub::pki::SigningRequest;
use fairlead_hub_core::session::Identity as MemberIdentity;

use super::*;

impl Port {
    /// Puts a CA beside the one of the start.
    fn turn(&self, next: Option<&fairlead_hub::pki::CaPem>) {
        let next = next.map(|pem| Ca::open(pem).unwrap());
        let current = Ca::open(&self.ca_pem).unwrap();
        self.authority.set(Authorities::new(current, next));
    }

    async fn try_open(&self, certificate: &str, cluster: &Cluster) -> Result<(), String> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.ca.certificate_pem()))
            .domain_name(SERVER_NAME)
            .identity(Identity::from_pem(certificate, cluster.key.serialize_pem()));
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        let channel =
            endpoint.tls_config(tls).unwrap().connect().await.map_err(|e| e.to_string())?;
        let answer = FleetClient::new(channel).session(tokio_stream::empty()).await;
        answer.map(drop).map_err(|status| status.to_string())
    }
}

#[tokio::test]
async fn a_stream_needs_a_certificate_of_a_registered_member() {
    let port = mk_port().await;
    let mut stranger = FleetClient::new(port.channel(None).await);
    let refused = stranger.session(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let east = Cluster::new("east", "uid-east");
    let certificate = port.join(&east).await;
    let mut agent = port.open(&certificate, &east).await;
    agent.say(east.hello(1, None)).await;
    agent.welcome().await;
    port.registry.members.lock().unwrap().clear();
    port.fleet.register(&port.registry.owners());
    assert_eq!(reason(&agent.hear().await.unwrap_err()), "MemberRemoved");
    let mut client = FleetClient::new(port.channel(Some((&certificate, &east))).await);
    let refused = client.session(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(reason(&refused), "MemberRemoved");
    let mut client = EnrollmentClient::new(port.channel(Some((&certificate, &east))).await);
    let request = pb::RenewRequest { csr_pem: east.csr() };
    assert_eq!(reason(&client.renew(request).await.unwrap_err()), "MemberRemoved");
}

#[tokio::test]
async fn a_token_is_good_for_one_key_which_may_retry() {
    let port = mk_port().await;
    let token = format!("abcdefgh.{}", "s".repeat(32));
    port.registry.add_token(&token, clock::now().plus(60_000));
    let (east, thief) = (Cluster::new("east", "uid-east"), Cluster::new("thief", "uid-thief"));
    port.enroll(east.request(&token)).await.unwrap();
    port.enroll(east.request(&token)).await.unwrap();
    let refused = port.enroll(thief.request(&token)).await.unwrap_err();
    assert_eq!(reason(&refused), "TokenUsed");
    assert_eq!(port.registry.owners().len(), 1);
}

#[tokio::test]
async fn each_wrong_join_is_refused_with_its_reason() {
    let port = mk_port().await;
    let good = format!("abcdefgh.{}", "s".repeat(32));
    let late = format!("expired0.{}", "s".repeat(32));
    port.registry.add_token(&good, clock::now().plus(60_000));
    port.registry.add_token(&late, clock::now());
    let east = Cluster::new("east", "uid-east");
    let taken = Registered { uid: ClusterUid::new("uid-other").ok(), version: "1".into() };
    port.registry.members.lock().unwrap().insert(MemberId::new("taken").unwrap(), taken);
    let request = || east.request(&good);
    let wrong_secret = format!("abcdefgh.{}", "t".repeat(32));
    let rows = [
        (east.request("nonsense"), "TokenUnknown"),
        (east.request(&wrong_secret), "TokenUnknown"),
        (east.request(&late), "TokenExpired"),
        (pb::EnrollRequest { member: "East".into(), ..request() }, "UnsupportedValue"),
        (pb::EnrollRequest { member: "taken".into(), ..request() }, "NameTaken"),
        (pb::EnrollRequest { now_ms: clock::now().0 - 600_000, ..request() }, "ClockSkew"),
        (pb::EnrollRequest { csr_pem: "x".into(), ..request() }, "Unreadable"),
        (pb::EnrollRequest { protocol: None, ..request() }, "VersionUnsupported"),
    ];
    for (request, want) in rows {
        let refused = port.enroll(request).await.unwrap_err();
        assert_eq!(reason(&refused), want, "{refused:?}");
        assert!(!refused.message().is_empty());
    }
    let huge = pb::EnrollRequest { csr_pem: "x".repeat(100_000), ..request() };
    assert_eq!(port.enroll(huge).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_certificate_is_renewed_for_the_same_member() {
    let port = mk_port().await;
    let east = Cluster::new("east", "uid-east");
    let certificate = port.join(&east).await;
    let mut client = EnrollmentClient::new(port.channel(Some((&certificate, &east))).await);
    let request = pb::RenewRequest { csr_pem: east.csr() };
    let renewed = client.renew(request).await.unwrap().into_inner().certificate_pem;
    let mut agent = port.open(&renewed, &east).await;
    agent.say(east.hello(1, None)).await;
    agent.welcome().await;
}

#[tokio::test]
async fn an_expired_certificate_renews_with_its_own_key_and_does_nothing_else() {
    let port = mk_port().await;
    let east = Cluster::new("east", "uid-east");
    port.join(&east).await;
    let identity = MemberIdentity {
        member: MemberId::new("east").unwrap(),
        uid: ClusterUid::new("uid-east").unwrap(),
    };
    let request = SigningRequest::read(&east.csr()).unwrap();
    let then = Millis(clock::now().0 - 3_600_000);
    let expired = port.ca.sign_member(&request, &identity, 60_000, then).unwrap();

    let channel = port.channel(Some((&expired, &east))).await;
    let refused = FleetClient::new(channel.clone()).session(tokio_stream::empty()).await;
    assert_eq!(reason(&refused.unwrap_err()), "CertificateExpired");
    let mut client = EnrollmentClient::new(channel);
    let other = Cluster::new("east", "uid-east");
    let refused = client.renew(pb::RenewRequest { csr_pem: other.csr() }).await;
    assert_eq!(reason(&refused.unwrap_err()), "WrongIdentity");
    let renewed = client.renew(pb::RenewRequest { csr_pem: east.csr() }).await.unwrap();
    let mut agent = port.open(&renewed.into_inner().certificate_pem, &east).await;
    agent.say(east.hello(1, None)).await;
    agent.welcome().await;
}

#[tokio::test]
async fn a_change_of_the_ca_is_told_in_streams_and_its_steps_lock_nobody_out() {
    let port = mk_port().await;
    let east = Cluster::new("east", "uid-east");
    let old = port.join(&east).await;
    let mut agent = port.open(&old, &east).await;
    agent.say(east.hello(1, None)).await;
    let next = make_ca(clock::now()).unwrap();
    let open = |pem| Ca::open(pem).unwrap();
    let current = || port.authority.now().server().certificate_pem().to_owned();
    assert_eq!(agent.trust().await, current());

    let first = current();
    port.turn(Some(&next));
    assert_eq!(agent.trust().await, format!("{first}{}", next.certificate));
    // Whoever renews now gets a certificate of the new one, and both to believe.
    let mut client = EnrollmentClient::new(port.channel(Some((&old, &east))).await);
    let answer = client.renew(pb::RenewRequest { csr_pem: east.csr() }).await.unwrap().into_inner();
    assert_eq!(answer.ca_pem, format!("{first}{}", next.certificate));
    port.open(&answer.certificate_pem, &east).await;

    port.authority.set(Authorities::new(open(&next), None));
    assert_eq!(agent.trust().await, next.certificate);
    // The hub's own certificate is swapped by somebody else here: the old one is still shown.
    port.open(&answer.certificate_pem, &east).await;
    let refused = port.try_open(&old, &east).await;
    assert!(refused.is_err(), "a certificate of the old CA is worth nothing");
}

#[tokio::test]
async fn nobody_gets_another_key_for_a_certificate() {
    let port = mk_port().await;
    let east = Cluster::new("east", "uid-east");
    let certificate = port.join(&east).await;
    let mut client = EnrollmentClient::new(port.channel(Some((&certificate, &east))).await);
    let other = Cluster::new("east", "uid-east");
    let refused = client.renew(pb::RenewRequest { csr_pem: other.csr() }).await;
    assert_eq!(reason(&refused.unwrap_err()), "WrongIdentity");
}
