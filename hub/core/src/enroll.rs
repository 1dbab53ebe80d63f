//! May this cluster become a member?
//!
//! Owns the order of the questions and the words of each refusal, which a person at a terminal
//! reads. Never reads a Secret, signs, or writes: it gets the stored token and the registered
//! members as values. A refusal says what to do next.

use std::collections::BTreeMap;

use fairlead_model::id::printable;
use fairlead_model::{ClusterUid, MemberId, Millis, Reason};

/// Clocks that differ by more would make certificates look expired or not yet valid.
pub const CLOCK_SKEW_MS_MAX: u64 = 5 * 60 * 1_000;

/// What a cluster asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JoinRequest {
    /// The name that it wants.
    pub member: String,
    /// UID of its kube-system namespace.
    pub cluster_uid: String,
    /// SHA-256 of the public key in its signing request, hex.
    pub key_hash: String,
    /// Its clock.
    pub now: Millis,
}

/// A join token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Token {
    /// Its public part.
    pub id: String,
    /// When it ends.
    pub expires_at: Millis,
    /// The only name that it is good for, if it says so.
    pub member: Option<String>,
    /// The key of its first request.
    pub bound_key: Option<String>,
}

/// Whether the token that was shown is one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// There is none with that id, or its secret part differs.
    Unknown,
    /// It is this one.
    Known(Token),
}

/// A request that is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The member.
    pub member: MemberId,
    /// Its cluster.
    pub uid: ClusterUid,
    /// What is to be done about its MemberCluster.
    pub registration: Registration,
}

/// What is to be done about the MemberCluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// Make it.
    Create,
    /// It was made by hand without a cluster: write the cluster into it.
    Claim,
    /// It is this cluster's already.
    Keep,
}

/// A request that is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Details and the next step.
    pub message: String,
}

fn refuse<T>(reason: Reason, message: String) -> Result<T, Refusal> {
    Err(Refusal { reason, message })
}

/// Decides a request. Registered members come with the cluster that owns their name, if any does.
///
/// # Errors
/// A [`Refusal`]: the first of the token, the name and the cluster that does not fit.
pub fn decide_join(
    request: &JoinRequest,
    shown: &Shown,
    members: &BTreeMap<MemberId, Option<ClusterUid>>,
    now: Millis,
) -> Result<Accepted, Refusal> {
    // The token first: a stranger must not learn which names are taken.
    let token = check_token(request, shown, now)?;
    let (member, uid) = check_names(request)?;
    check_bound_name(&member, token)?;
    check_clock(request.now, now)?;
    check_other_name(&member, &uid, members)?;
    let registration = register(&member, &uid, members)?;
    Ok(Accepted { member, uid, registration })
}

fn check_token<'a>(
    request: &JoinRequest,
    shown: &'a Shown,
    now: Millis,
) -> Result<&'a Token, Refusal> {
    let Shown::Known(token) = shown else {
        return refuse(
            Reason::TokenUnknown,
            "no such token; check that it was copied whole, or make one with: fairlead token create"
                .to_owned(),
        );
    };
    if now >= token.expires_at {
        let minutes = now.since(token.expires_at) / 60_000;
        return refuse(
            Reason::TokenExpired,
            format!(
                "token {} expired {minutes} min ago; make a new one with: fairlead token create",
                token.id
            ),
        );
    }
    match &token.bound_key {
        Some(key) if *key != request.key_hash => refuse(
            Reason::TokenUsed,
            format!(
                "token {} was used with another key; it is good for one cluster: make a new one with: \
                 fairlead token create",
                token.id
            ),
        ),
        _ => Ok(token),
    }
}

fn check_names(request: &JoinRequest) -> Result<(MemberId, ClusterUid), Refusal> {
    let unfit = |error: fairlead_model::IdError| Refusal {
        reason: Reason::UnsupportedValue,
        message: format!("{error}; choose another with --member NAME"),
    };
    let member = MemberId::new(&request.member).map_err(unfit)?;
    let uid = ClusterUid::new(&request.cluster_uid).map_err(|error| Refusal {
        reason: Reason::UnsupportedValue,
        message: error.to_string(),
    })?;
    Ok((member, uid))
}

fn check_bound_name(member: &MemberId, token: &Token) -> Result<(), Refusal> {
    match &token.member {
        Some(bound) if bound != member.as_str() => refuse(
            Reason::WrongIdentity,
            format!(
                "token {} is for member {}, not {member}; join with --member {}",
                token.id,
                printable(bound),
                printable(bound)
            ),
        ),
        _ => Ok(()),
    }
}

fn check_clock(theirs: Millis, ours: Millis) -> Result<(), Refusal> {
    let skew = theirs.since(ours).max(ours.since(theirs));
    if skew <= CLOCK_SKEW_MS_MAX {
        return Ok(());
    }
    let side = if theirs > ours { "ahead of" } else { "behind" };
    refuse(
        Reason::ClockSkew,
        format!(
            "the cluster's clock is {} s {side} the hub's; at most {} s are allowed: synchronise it (NTP) \
             and join again",
            skew / 1_000,
            CLOCK_SKEW_MS_MAX / 1_000
        ),
    )
}

fn check_other_name(
    member: &MemberId,
    uid: &ClusterUid,
    members: &BTreeMap<MemberId, Option<ClusterUid>>,
) -> Result<(), Refusal> {
    let owned = |(name, owner): &(&MemberId, &Option<ClusterUid>)| {
        *name != member && owner.as_ref() == Some(uid)
    };
    match members.iter().find(owned) {
        Some((name, _)) => refuse(
            Reason::ClusterJoinedAlready,
            format!(
                "this cluster is member {name} already; join with --member {name}, or leave first: \
                 fairlead leave"
            ),
        ),
        None => Ok(()),
    }
}

fn register(
    member: &MemberId,
    uid: &ClusterUid,
    members: &BTreeMap<MemberId, Option<ClusterUid>>,
) -> Result<Registration, Refusal> {
    match members.get(member) {
        None => Ok(Registration::Create),
        Some(None) => Ok(Registration::Claim),
        Some(Some(owner)) if owner == uid => Ok(Registration::Keep),
        Some(Some(_)) => refuse(
            Reason::NameTaken,
            format!(
                "member {member} is another cluster (other kube-system UID); choose another name, or, if \
                 that cluster is gone, delete its MemberCluster in the hub: kubectl delete mc {member}"
            ),
        ),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const NOW: Millis = Millis(10_000_000);

    type Registered<'a> = &'a [(&'a str, Option<&'a str>)];

    fn mk_request() -> JoinRequest {
        JoinRequest {
            member: "east".into(),
            cluster_uid: "uid-east".into(),
            key_hash: "k1".into(),
            now: NOW,
        }
    }

    fn mk_token() -> Token {
        Token { id: "abcdefgh".into(), expires_at: NOW.plus(1), ..Token::default() }
    }

    fn mk_members(rows: &[(&str, Option<&str>)]) -> BTreeMap<MemberId, Option<ClusterUid>> {
        let row = |(name, uid): &(&str, Option<&str>)| {
            (MemberId::new(name).unwrap(), uid.map(|uid| ClusterUid::new(uid).unwrap()))
        };
        rows.iter().map(row).collect()
    }

    fn decide(
        request: &JoinRequest,
        token: Token,
        members: &[(&str, Option<&str>)],
    ) -> Result<Accepted, Refusal> {
        decide_join(request, &Shown::Known(token), &mk_members(members), NOW)
    }

    #[test]
    fn a_good_request_is_granted_and_says_what_to_register() {
        let rows: [(Registered<'_>, Registration); 4] = [
            (&[], Registration::Create),
            (&[("west", Some("uid-west"))], Registration::Create),
            (&[("east", None)], Registration::Claim),
            (&[("east", Some("uid-east"))], Registration::Keep),
        ];
        for (members, want) in rows {
            assert_eq!(decide(&mk_request(), mk_token(), members).unwrap().registration, want);
        }
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let token = mk_token;
        let request = mk_request;
        let used = Token { bound_key: Some("k2".into()), ..token() };
        let bound = Token { member: Some("west".into()), ..token() };
        let ahead = JoinRequest { now: NOW.plus(CLOCK_SKEW_MS_MAX + 1), ..request() };
        let behind = JoinRequest { now: Millis(NOW.0 - CLOCK_SKEW_MS_MAX - 1), ..request() };
        let bad_name = JoinRequest { member: "East_1".into(), ..request() };
        let bad_uid = JoinRequest { cluster_uid: "a b".into(), ..request() };
        let rows: [(JoinRequest, Token, Registered<'_>, Reason); 9] = [
            (request(), Token { expires_at: NOW, ..token() }, &[], Reason::TokenExpired),
            (request(), used, &[], Reason::TokenUsed),
            (request(), bound, &[], Reason::WrongIdentity),
            (bad_name, token(), &[], Reason::UnsupportedValue),
            (bad_uid, token(), &[], Reason::UnsupportedValue),
            (ahead, token(), &[], Reason::ClockSkew),
            (behind, token(), &[], Reason::ClockSkew),
            (request(), token(), &[("east", Some("uid-other"))], Reason::NameTaken),
            (request(), token(), &[("old-east", Some("uid-east"))], Reason::ClusterJoinedAlready),
        ];
        for (request, token, members, want) in rows {
            assert_eq!(decide(&request, token, members).unwrap_err().reason, want);
        }
        let unknown = decide_join(&request(), &Shown::Unknown, &BTreeMap::new(), NOW);
        assert_eq!(unknown.unwrap_err().reason, Reason::TokenUnknown);
    }

    #[test]
    fn a_stranger_does_not_learn_which_names_are_taken() {
        let members = mk_members(&[("east", Some("uid-other"))]);
        let refusal = decide_join(&mk_request(), &Shown::Unknown, &members, NOW).unwrap_err();
        assert_eq!(refusal.reason, Reason::TokenUnknown);
    }

    #[test]
    fn the_first_key_may_retry_with_its_token() {
        let bound = Token { bound_key: Some("k1".into()), ..mk_token() };
        assert!(decide(&mk_request(), bound, &[("east", Some("uid-east"))]).is_ok());
    }

    #[test]
    fn the_allowed_skew_is_allowed() {
        let ahead = JoinRequest { now: NOW.plus(CLOCK_SKEW_MS_MAX), ..mk_request() };
        assert!(decide(&ahead, mk_token(), &[]).is_ok());
    }

    #[test]
    fn refusals_name_the_next_step() {
        let refusal =
            decide(&mk_request(), mk_token(), &[("east", Some("uid-other"))]).unwrap_err();
        assert!(refusal.message.contains("kubectl delete mc east"), "{refusal}");
    }
}
