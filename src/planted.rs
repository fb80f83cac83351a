//! Mistakes that can be planted into this crate; see the module of the same name in the VFS crate.

shoaldb_vfs::planted_bugs! {
    /// a follower acknowledges entries before they are on its disk
    AckBeforeSync,
    /// a term or a vote is told before it is on disk
    VoteBeforeSync,
    /// a vote that goes to disk together with entries is left out
    ForgetVote,
    /// the log is not synced
    SkipLogSync,
    /// a failed sync of the log is ignored
    IgnoreFailedSync,
    /// the name of a new log segment is not made durable
    SkipSegmentDirSync,
    /// a log that was opened is built upon without being written and synced once more
    SkipSettle,
    /// a truncation record names one entry too much
    TruncateTooMuch,
    /// an entry that conflicts is overwritten where it lies
    OverwriteInPlace,
    /// a transaction is published as soon as its leader has proposed it
    PublishBeforeCommit,
    /// "not committed" is concluded from the local log
    LocalLogProof,
    /// an unknown outcome is told as "not committed"
    UnknownAsNotCommitted,
    /// an accepted transaction counts as applied before it is shown
    AppliedBeforeShown,
    /// a linearizable read does not wait until this node has applied what it must see
    ReadWithoutApplied,
    /// a leader answers linearizable reads without asking anybody
    ReadWithoutMajority,
    /// a read that comes during another one's round is not woken up
    LostWakeUp,
    /// after a start entries are handed to the applier twice
    ApplyTwice,
    /// a start may begin behind the first part of a transaction whose other parts come later
    SettledIsApplied,
    /// a data directory that was wiped is let in under its old id
    WipedVoter,
    /// votes of a listed node count before it is bound to a directory
    UnboundVotes,
    /// the anchor says that a start may begin behind entries that are in no main file
    AnchorTooFar,
    /// a node that joins votes before it has caught up
    PromotedEarly,
    /// a node that was removed is let in
    RemovedLetIn,
    /// a view is cut while the parts of a transaction are still coming
    ViewOfOpenSplit,
    /// a snapshot is offered only to whoever lacks what the files of the log lack
    OfferByFiles,
    /// a view that is over is not closed: what it kept from being checkpointed stays so
    SkipFinalize,
    /// a view is lent once more although the log begins behind it
    ReuseStaleView,
    /// the log is dropped although a view that is lent needs it to go on from
    CompactPastView,
    /// the end of a snapshot is told twice
    FinishedTwice,
    /// the install of a snapshot forgets this node's vote
    InstallForgetsVote,
    /// a node says of a receipt that it is not committed when it only does not know yet
    ReceiptByGuess,
}
