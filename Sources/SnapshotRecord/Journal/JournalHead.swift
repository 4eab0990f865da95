package import LinuxSystem
package import SystemPackage

/// Which start of the machine, and which mount of the source, wrote a journal: where both are those of now, the kernel
/// has kept everything that was written, synced or not.
package struct BootIdentity: Sendable, Equatable {
    /// The 16 bytes of /proc/sys/kernel/random/boot_id, those that it shows first in `high`.
    package let high: UInt64
    package let low: UInt64
    /// STATX_MNT_ID_UNIQUE; STATX_MNT_ID before Linux 6.8; 0 where the kernel has neither.
    package let mount: UInt64

    package init(high: UInt64, low: UInt64, mount: UInt64) {
        (self.high, self.low, self.mount) = (high, low, mount)
    }

    /// That of now, for the mount on which `source` was opened.
    package static func current(source: Descriptor) throws(Errno) -> BootIdentity {
        let (high, low) = try bootNumber()
        return BootIdentity(high: high, low: low, mount: try mountNumber(of: source))
    }
}

/// What a journal is of. `JournalFormat` has its bytes.
package struct JournalHead: Sendable, Equatable {
    /// How a snapshot is kept: which of the two versions is in the delta.
    package enum Embodiment: UInt8, Sendable {
        case preserve = 1
        case redirect = 2
    }

    package var embodiment: Embodiment
    package var layer: UInt64
    /// The layer was begun by a seal, not by a start: it is no snapshot.
    package var isContinued: Bool
    package var source: InodeKey
    package var cut: Timestamp
    /// The snapshot's number.
    package var serial: UInt64
    package var boot: BootIdentity

    package init(
        embodiment: Embodiment, layer: UInt64, isContinued: Bool, source: InodeKey, cut: Timestamp, serial: UInt64,
        boot: BootIdentity
    ) {
        self.embodiment = embodiment
        self.layer = layer
        self.isContinued = isContinued
        self.source = source
        self.cut = cut
        self.serial = serial
        self.boot = boot
    }
}
