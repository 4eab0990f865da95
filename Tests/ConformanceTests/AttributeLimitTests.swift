import CTestSupport
import Glibc
import SystemPackage
import TestSupport
import Testing

/// How large and how many extended attributes may be, of each kind of file and in each namespace.
@Suite(.serialized) struct AttributeLimitTests {
    @Test("values of each size are kept or refused as the source does", arguments: Setting.available)
    func values(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try (place / "file").create()
            try place.cut()
            for size in [0, 1, 100, 2_000, 3_900, 4_000, 4_096, 10_000, 65_535, 65_536, 65_537, 1 << 20] {
                let file = place / "file"
                transcript.note("set \(size)") { try file.setAttribute("user.a", bytes(size)) }
                transcript.note("get \(size)") { try file.attribute("user.a").count }
                transcript.note("get with little room") { try file.attribute("user.a", room: 10) }
                transcript.note("list") { try file.attributeNames() }
                transcript.note("remove") { try file.removeAttribute("user.a") }
            }
        }
    }

    @Test("names up to 255 bytes, of any bytes", arguments: Setting.available)
    func names(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try (place / "file").create()
            try place.cut()
            let names = [250, 251, 255].map { "user." + String(repeating: "n", count: $0 - 5) }
            for name in names + [
                "user.", "user.é\u{1}\u{7f}", "user.a b", "user", "", ".a", "nobody.a", "system.a",
            ] {
                transcript.note("set \(name.count) \(name.prefix(9))") {
                    try (place / "file").setAttribute(name, [1])
                }
                transcript.note("get \(name.count)") { try (place / "file").attribute(name) }
                transcript.note("list") { try (place / "file").attributeNames().sorted().map(\.count) }
                transcript.note("remove") { try (place / "file").removeAttribute(name) }
            }
        }
    }

    @Test("many attributes, until there is no room", arguments: Setting.available)
    func many(_ setting: Setting) throws {
        try setting.compare { place, transcript in
            try (place / "file").create()
            try place.cut()
            for number in 0..<60 {
                transcript.note("set") { try (place / "file").setAttribute("user.\(number)", bytes(100)) }
            }
            transcript.state("names", try (place / "file").attributeNames().sorted())
        }
    }

    @Test("each namespace on each kind of file, for root and others", arguments: Setting.available)
    func namespaces(_ setting: Setting) throws {
        let callers =
            Machine.isRoot
            ? [
                Caller.root, Caller(description: "owner", user: 1000, group: 1000),
                Caller(description: "other", user: 1001, group: 1001),
            ]
            : [Caller(description: "self", user: 0, group: 0)]
        try setting.compare { place, transcript in
            for kind in FileKind.available {
                let path = place / kind.rawValue.path
                try kind.make(path)
                if Machine.isRoot { try path.chown(user: 1000) }
                if kind != .symlink { try path.chmod(kind == .empty ? 0o1777 : 0o666) }
            }
            try place.cut()
            for kind in FileKind.available {
                for name in ["user.a", "trusted.a", "security.a", "system.a"] {
                    for caller in callers {
                        let (path, what) = (place / kind.rawValue.path, "\(caller) \(kind) \(name)")
                        try caller.run {
                            transcript.note("\(what): set") { try path.setAttribute(name, [1, 2]) }
                            transcript.note("\(what): replace") { try path.setAttribute(name, [3], flags: 2) }
                            transcript.note("\(what): create") { try path.setAttribute(name, [3], flags: 1) }
                            transcript.note("\(what): both") { try path.setAttribute(name, [3], flags: 3) }
                            transcript.note("\(what): get") { try path.attribute(name) }
                            transcript.note("\(what): list") { try path.attributeNames().sorted() }
                            transcript.note("\(what): remove") { try path.removeAttribute(name) }
                        }
                    }
                }
            }
        }
    }
}
