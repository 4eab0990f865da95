package import SystemPackage

/// How a process that only reads a snapshot keeps up with the record that the daemon makes.
package protocol RecordFollower: Sendable {
    /// Brings the map to what is recorded by now, and notes at the snapshot's end (`SnapshotEnd`) that it is over. Throws EIO
    /// where that cannot be known. Safe for use by all threads.
    func catchUp() throws(Errno)
}
