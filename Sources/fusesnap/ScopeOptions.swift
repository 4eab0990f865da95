internal import ArgumentParser
internal import ControlSocket
internal import Glibc

/// What a snapshot is of and for, as `ctl start` and `run` are told.
struct ScopeOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Snapshot only the files of this user, by name or number, and the directories that lead to them; may be given several times. An ordinary user's snapshot of root's mount is always of their own.",
            valueName: "user"))
    var user: [String] = []

    @Option(
        help: ArgumentHelp(
            "The same of the files of this group; with --user too, of either.", valueName: "group"))
    var group: [String] = []

    @Flag(
        help:
            "The backup reads each file once: what it has read is not kept any more, and reading it again after it has changed fails."
    )
    var singlePass = false

    func validate() throws {
        _ = try resolve(StartOptions())
    }

    /// The options of a start with the numbers of these users and groups.
    func resolve(_ options: StartOptions) throws -> StartOptions {
        var options = options
        if !user.isEmpty { options.users = try user.map { try Self.number(ofUser: $0) } }
        if !group.isEmpty { options.groups = try group.map { try Self.number(ofGroup: $0) } }
        if singlePass { options.singlePass = true }
        return options
    }

    /// A name is looked up first: there may be users with numbers for names.
    private static func number(ofUser text: String) throws -> UInt32 {
        if let entry = getpwnam(text) { return entry.pointee.pw_uid }
        return try number(text, "user")
    }

    private static func number(ofGroup text: String) throws -> UInt32 {
        if let entry = getgrnam(text) { return entry.pointee.gr_gid }
        return try number(text, "group")
    }

    private static func number(_ text: String, _ what: String) throws -> UInt32 {
        // The highest number means none.
        guard text.utf8.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }),
            let number = UInt32(text), number != .max
        else { throw ValidationError("there is no \(what) '\(text)'; name one, or give its number") }
        return number
    }

    /// In words: whose files, nil for everybody's.
    static func text(users: [UInt32]?, groups: [UInt32]?) -> String? {
        let users = (users ?? []).map { number in name(getpwuid(number)?.pointee.pw_name, number) }
        let groups = (groups ?? []).map { number in name(getgrgid(number)?.pointee.gr_name, number) }
        var parts: [String] = []
        if !users.isEmpty { parts.append("of user " + users.joined(separator: ", ")) }
        if !groups.isEmpty { parts.append("of group " + groups.joined(separator: ", ")) }
        return parts.isEmpty ? nil : "files " + parts.joined(separator: " and ")
    }

    private static func name(_ name: UnsafePointer<CChar>?, _ number: UInt32) -> String {
        name.map { "\(String(cString: $0)) (\(number))" } ?? "\(number)"
    }
}
