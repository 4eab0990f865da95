internal import Glibc
package import LinuxSystem
package import SnapshotRecord
internal import Synchronization
package import SystemPackage

// The end of a redirect: layers are sealed and merged, one after the other, until nothing is left; or all is discarded.
extension Redirect {
    /// What is left is merged with the gate closed where it is no more than this: a few milliseconds.
    private static let closedAreasMax: UInt64 = 64
    /// And after so many passes, whatever it is, so that a merge ends under any load.
    private static let passesMax = 12

    private func head(_ number: UInt64, after head: JournalHead) -> JournalHead {
        var next = head
        next.layer = number
        next.isContinued = true
        next.boot = boot
        return next
    }

    /// Ends the snapshot: seals the top layer and puts an empty one on it, inside the gate. `atSeal` is called there.
    /// Nothing has changed where it throws.
    package func seal(_ gate: OperationGate, _ atSeal: () -> Void) throws(Errno) {
        try renewJournal()
        // Long, with the gate open: so little is left for the mark behind the seal.
        try synchronizeAll()
        try sealing(gate) { () throws(Errno) in atSeal() }
    }

    /// Seals the top layer inside the gate, then calls `body` there. What that throws is thrown; the layer is sealed then.
    private func sealing(
        _ gate: OperationGate, _ body: () throws(Errno) -> Void
    ) throws(Errno) {
        let stack = stack
        precondition(stack.sealed == nil, "one layer is merged at a time")
        let number = stack.top.number + 1
        let next = try Self.makeLayer(
            number, in: store, head(number, after: stack.top.journal.head), bytesMax: bytesMax)
        var isSealed = false
        let failure = gate.withClosed { () -> Errno? in
            do throws(Errno) {
                _ = try stack.top.journal.append(.sealed)
                replaceStack(LayerStack([next, stack.top]))
                isSealed = true
                commits.forgetAfterMarks()
                try body()
                return nil
            } catch {
                return error
            }
        }
        guard let failure else { return }
        if !isSealed { try store.removeLayer(number) }
        throw failure
    }

    /// Merges what there is, the sealed layer first, until nothing is left above while the gate is closed; `becomeIdle` is
    /// called then, there: from then on the primary is all there is. `openUnnamed` opens an inode without a name, if
    /// somebody has it open. May be called again after it threw.
    package func merge(
        _ gate: OperationGate, openUnnamed: @escaping (InodeReference) -> Descriptor?,
        report: @escaping (MergeProgress) -> Void, becomeIdle: () -> Void
    ) throws(Errno) {
        func merge(_ sealed: Layer) throws(Errno) {
            try makeSealDurable(sealed)
            var merge = Merge(self, sealed, above: stack.top, openUnnamed: openUnnamed, report: report)
            try merge.run()
            try merge.makeDurable()
            try finishMerge(of: sealed)
        }
        var pass = 0
        while true {
            if stack.sealed == nil { try seal(gate) {} }
            guard let sealed = stack.sealed else { preconditionFailure("a layer has been sealed") }
            let top = stack.top
            try merge(sealed)
            pass += 1
            // What the marks of the top layer rely on is durable.
            top.isBelowDurable.store(true, ordering: .releasing)
            let isIdle = gate.withClosed {
                replaceStack(LayerStack([top]))
                if top.map.isEmpty { becomeIdle() }
                return top.map.isEmpty
            }
            try removeFiles(of: sealed)
            if isIdle { return try finish(top) }
            guard top.map.changedAreas <= Self.closedAreasMax || pass >= Self.passesMax else { continue }
            // Applications change as fast as this merges: the rest while they wait.
            try synchronizeAll()
            try sealing(gate) { () throws(Errno) in
                try merge(top)
                replaceStack(LayerStack([stack.top]))
                becomeIdle()
            }
            try removeFiles(of: top)
            return try finish(stack.top)
        }
    }

    /// After the last merge: what is left of the layer that stayed empty, and where new files were.
    private func finish(_ empty: Layer) throws(Errno) {
        try removeFiles(of: empty)
        try credentials.assumeDaemon()
        templates.withLock { $0 = [:] }
        try store.emptyNew()
    }

    /// The primary is durable, then the layer's journal goes: it is none any more.
    private func finishMerge(of layer: Layer) throws(Errno) {
        try credentials.assumeDaemon()
        try Steps.step("remove journal") { () throws(Errno) in try store.removeJournal(layer.number) }
        readers.removeAll()
    }

    private func removeFiles(of layer: Layer) throws(Errno) {
        layer.files.releaseDescriptors()
        try Steps.step("remove layer") { () throws(Errno) in try store.removeLayer(layer.number) }
    }

    /// Throws all away that was changed since the cut; `becomeIdle` is called inside the closed gate, and the primary is
    /// all there is from then on. Throws EBUSY where a merge has begun, EPERM where a part of it is in the primary already.
    package func discard(_ gate: OperationGate, becomeIdle: () -> Void) throws(Errno) {
        let stack = stack
        if stack.sealed != nil { throw .resourceBusy }
        if terms.changesSource { throw .notPermitted }
        try credentials.assumeDaemon()
        let failure = gate.withClosed { () -> Errno? in
            do throws(Errno) {
                _ = try stack.top.journal.append(.discarded)
                try stack.top.journal.synchronize()
            } catch {
                return error
            }
            becomeIdle()
            return nil
        }
        if let failure { throw failure }
        commits.forgetAfterMarks()
        try removeDiscarded(stack.top)
    }

    /// What a layer that was discarded leaves: files made since, then the layer.
    private func removeDiscarded(_ layer: Layer) throws(Errno) {
        templates.withLock { $0 = [:] }
        readers.removeAll()
        try Steps.step("remove new files") { () throws(Errno) in try store.emptyNew() }
        layer.files.releaseDescriptors()
        try removeFiles(of: layer)
    }
}
