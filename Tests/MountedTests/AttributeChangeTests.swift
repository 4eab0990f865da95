import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

@Suite(.serialized, .enabled(if: Machine.canMount, "\(Machine.needsMount)")) struct AttributeChangeTests {
    @Test("a snapshot keeps the attributes at the cut", arguments: changes, Variant.available)
    func keepsAttributes(_ change: Change, _ variant: Variant) throws {
        try verify(change, variant)
    }

    private static let changes = Kind.available.flatMap(ofEveryKind) + setId + lists + combined

    /// A change of an inode that has two attributes and times of its own.
    private static func of(_ kind: Kind, _ name: String, _ body: @escaping @Sendable (Path) throws -> Void)
        -> Change
    {
        Change("\(name) of a \(kind)") { root in
            let path = root / "it"
            try kind.make(path)
            if Machine.isRoot {
                try path.setAttribute("trusted.kept", bytes(20))
                try path.setAttribute("trusted.changed", bytes(300))
            }
            try path.setTimes(accessed: Timestamp(1_000, 1), modified: Timestamp(2_000, 2))
            return { try body(path) }
        }
    }

    private static func ofEveryKind(_ kind: Kind) -> [Change] {
        var changes = [
            of(kind, "utimensat") {
                try $0.setTimes(accessed: Timestamp(-5, 7), modified: Timestamp(4_291_747_200, 1))
            },
            of(kind, "utimensat twice") { path in
                try path.setTimes(accessed: nil, modified: Timestamp(3, 3))
                try path.setTimes(accessed: nil, modified: Timestamp(4, 4))
            },
        ]
        if kind != .symlink {
            changes += [
                of(kind, "chmod") { try $0.chmod(0o4711) },
                of(kind, "chmod there and back") { path in
                    let mode = try path.lstat().permissions
                    try path.chmod(0)
                    try path.chmod(mode)
                },
            ]
        }
        if Machine.isRoot {
            changes += [
                of(kind, "chown") { try $0.chown(user: 70_000, group: 80_000) },
                of(kind, "a new attribute") { try $0.setAttribute("trusted.new", bytes(50)) },
                of(kind, "another value of an attribute") {
                    try $0.setAttribute("trusted.changed", bytes(30, seed: 2))
                },
                of(kind, "removal of an attribute") { try $0.removeAttribute("trusted.changed") },
            ]
        }
        return changes
    }

    private static let setId: [Change] =
        Machine.isRoot
        ? ["write", "truncate", "chown"].map { way in
            Change("set-id bits cleared by a user's \(way)") { root in
                let file = root / "program"
                try file.create(bytes(5_000))
                try file.chown(user: 1_000, group: 1_000)
                try file.chmod(0o6755)
                return {
                    try asUser(1_000) {
                        switch way {
                        case "write": try file.write([1], at: 100)
                        case "truncate": try file.truncate(100)
                        default: try file.chown(group: 1_000)
                        }
                    }
                }
            }
        } : []

    /// user::rw-, user:1000:r--, group::r--, mask::rw-, other::---, as the kernel keeps it.
    private static let list: [UInt8] =
        [2, 0, 0, 0] + [1, 0, 6, 0, 255, 255, 255, 255] + [2, 0, 4, 0, 0xe8, 3, 0, 0]
        + [4, 0, 4, 0, 255, 255, 255, 255] + [0x10, 0, 6, 0, 255, 255, 255, 255] + [
            0x20, 0, 0, 0, 255, 255, 255, 255,
        ]

    private static let lists: [Change] = [
        Change("an access list given") { root in
            try (root / "file").create()
            return { try (root / "file").setAttribute("system.posix_acl_access", list) }
        },
        Change("an access list taken away") { root in
            try (root / "file").create()
            try (root / "file").setAttribute("system.posix_acl_access", list)
            return { try (root / "file").removeAttribute("system.posix_acl_access") }
        },
        Change("an access list narrowed by chmod") { root in
            try (root / "file").create()
            try (root / "file").setAttribute("system.posix_acl_access", list)
            return { try (root / "file").chmod(0o600) }
        },
        Change("a default list given, and inherited") { root in
            try (root / "d").mkdir()
            return {
                try (root / "d").setAttribute("system.posix_acl_default", list)
                try (root / "d/file").create()
                try (root / "d/sub").mkdir()
            }
        },
        Change("a default list taken away") { root in
            try (root / "d").mkdir()
            try (root / "d").setAttribute("system.posix_acl_default", list)
            return { try (root / "d").removeAttribute("system.posix_acl_default") }
        },
    ]

    private static let combined: [Change] = [
        Change("attributes of the root") { root in
            try root.setAttribute("user.root", bytes(10))
            return {
                try root.chmod(0o700)
                try root.setTimes(accessed: nil, modified: Timestamp(5, 5))
                try root.setAttribute("user.root", bytes(20))
            }
        },
        Change("attributes through a descriptor of an unlinked file") { root in
            try (root / "file").create(bytes(100))
            try (root / "file").setAttribute("user.a", bytes(10))
            let file = try (root / "file").open(O_RDWR)
            return {
                try (root / "file").unlink()
                try file.chmod(0o600)
                try check(fremovexattr(file.raw, "user.a"))
            }
        },
        Change("attributes of one of two hard links") { root in
            try (root / "a").create(bytes(100))
            try (root / "a").link(to: root / "b")
            return {
                try (root / "a").chmod(0o600)
                try (root / "b").setAttribute("user.b", bytes(10))
            }
        },
        Change("a file of which everything changes") { root in
            try (root / "a").create(bytes(10_000))
            try (root / "a").setAttribute("user.a", bytes(10))
            return {
                try (root / "a").setAttribute("user.a", bytes(2_000, seed: 2))
                try (root / "a").write(bytes(5_000, seed: 2), at: 8_000)
                try (root / "a").chmod(0o777)
                try (root / "a").truncate(100)
                try (root / "a").rename(to: root / "b")
                try (root / "b").setTimes(accessed: nil, modified: Timestamp(9, 9))
                try (root / "b").unlink()
            }
        },
    ]
}
