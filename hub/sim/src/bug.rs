//! Bugs that are planted on purpose, to see that the checkers catch them.

/// A planted bug; off but for tests of the checkers themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// An agent takes whatever bundle arrives.
    AcceptOldNumbers,
    /// An agent never gives a peer back that it took out.
    OverlayNeverLifts,
    /// The hub plans at once after its start, from what has arrived by then.
    PlanBeforeInventory,
    /// The hub takes an export for consent even if the member refuses it.
    IgnoreConsent,
    /// An agent gives a peer back at its first answer.
    LiftAtOnce,
    /// The hub forgets a drain.
    IgnoreDrain,
    /// The hub believes every member that says where its door is.
    TrustAddresses,
}

impl Bug {
    /// All but none.
    pub const ALL: [Self; 7] = [
        Self::AcceptOldNumbers,
        Self::OverlayNeverLifts,
        Self::PlanBeforeInventory,
        Self::IgnoreConsent,
        Self::LiftAtOnce,
        Self::IgnoreDrain,
        Self::TrustAddresses,
    ];
}
