/// A rule left out on purpose: the tests must notice each. `Docs/Redirect.md` tells of them.
package enum Mistake: String, CaseIterable, Sendable {
    /// A rename writes a record for each area instead of one for all.
    case recordForEachArea
    /// The record is written before the data are in the delta file.
    case recordBeforeData
    /// A partial write to a block takes the rest of it from the delta file instead of from the live view.
    case composeFromDeltaFile
    /// A truncation notes the new size, but not that what lies behind it is a hole.
    case truncateKeepsBlocks
    /// A mark covers what was recorded while its data were being synced.
    case markCoversWhatCameAfterTheFlush
    /// A mark counts for the data of all inodes, though it waited only for some.
    case markCoversAllData
    /// A mark is written before the primary from before the start is durable.
    case markBeforePrimaryIsDurable
    /// A mark is written before the names of new files in the store are durable.
    case markBeforeNewFilesAreDurable
    /// Holes are punched into delta files at once, not when the record of it is durable.
    case punchAtOnce
    /// A new file that loses its last name is removed at once.
    case removeNewFileAtOnce
    /// Recovery from a kill removes new files without a name before the record of it is durable.
    case strayGoesBeforeMark
    /// The merge removes a new file that the next layer has unlinked, before the record of that is durable.
    case clearGoesBeforeMark
    /// A rename over another is not preceded by a flush of what takes its place.
    case renameOverUnflushed
    /// After a kill nobody knows any more what must be flushed before the next mark.
    case killForgetsFlushes
    /// After a power cut the journal is written on as it is, with what did not count in it.
    case journalGoesOnAfterPowerCut
    /// What lies behind a recovered size stays there.
    case tailsStay
    /// The head of a recovered journal keeps the old boot.
    case recoveredHeadKeepsBoot
    /// Merging begins before what is merged is durable.
    case mergeUncommitted
    /// A sealed layer counts as soon as the seal can be read.
    case sealCountsUnmarked
    /// A mark in the next layer does not wait for the one below.
    case markDoesNotWaitForSeal
    /// Names are put where they belong without being taken away first.
    case mergeWithoutStaging
    /// Names are put where they belong before it is durable that others were taken away.
    case putBeforeTakesAreDurable
    /// A directory's attributes are merged before the names in it.
    case directoryTimesFirst
    /// A merged layer's delta files go before its journal.
    case deltaGoesBeforeJournal
    /// The journal of a merged layer goes before the primary is durable.
    case journalGoesBeforeSync
    /// Writes during the merge go to the layer that is being merged.
    case writeToMergingLayer
    /// Discarding removes the store's files before the decision is durable.
    case discardBeforeRecord
}
