import SystemPackage
import TestSupport
import Testing

/// The manual says what the program says of itself, and what is installed is whole.
struct ManualTests {
    /// The package's directory: three above this file.
    private static let package = Path(
        #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined())

    private func manual(_ page: String) throws -> [Substring] {
        String(decoding: try (Self.package / Path("Docs/man/\(page)")).contents(), as: UTF8.self)
            .split(separator: "\n", omittingEmptySubsequences: false)
    }

    /// The lines of the manual's section on a command.
    private func section(_ command: String, _ lines: [Substring]) -> ArraySlice<Substring>? {
        guard let start = lines.firstIndex(of: ".SS fusesnap \(command)") else { return nil }
        let end =
            lines[(start + 1)...].firstIndex { $0.hasPrefix(".SS ") || $0.hasPrefix(".SH ") } ?? lines.endIndex
        return lines[(start + 1)..<end]
    }

    /// The options that a section explains: the tags of its paragraphs.
    private func explained(_ section: ArraySlice<Substring>) -> Set<String> {
        var options: Set<String> = []
        for (line, next) in zip(section, section.dropFirst()) where line == ".TP" {
            let words = next.replacing("\\-", with: "-").split { " \",".contains($0) }
            options.formUnion(words.filter { $0.hasPrefix("-") }.map(String.init))
        }
        return options
    }

    /// The options that `--help` shows, in any of its groups, but those of every command.
    private func shown(_ words: [String]) throws -> Set<String> {
        var options: Set<String> = []
        for line in try help(words) where line.hasPrefix("  -") {
            let names = line.dropFirst(2).prefix(while: { $0 != "<" }).split { ", ".contains($0) }
            options.formUnion(names.prefix { $0.hasPrefix("-") }.map(String.init))
        }
        return options.subtracting(["--help", "-h", "--version"])
    }

    private func help(_ words: [String]) throws -> [Substring] {
        try succeed([Machine.binary] + words + ["--help"], environment: ["COLUMNS": "200"])
            .split(separator: "\n", omittingEmptySubsequences: false)
    }

    private func verbs(_ words: [String]) throws -> [String] {
        try help(words).drop { $0 != "SUBCOMMANDS:" }.dropFirst().prefix { !$0.isEmpty }
            .filter { $0.hasPrefix("  ") && !$0.hasPrefix("   ") }
            .compactMap { $0.split(separator: " ").first.map(String.init) }
    }

    @Test("every verb and every option is in the manual, and nothing else")
    func options() throws {
        for (page, prefix) in [("fusesnap.1", []), ("fusesnap-ctl.1", ["ctl"])] {
            let lines = try manual(page)
            let verbs = try verbs(prefix).filter { $0 != "ctl" }
            #expect(!verbs.isEmpty)
            for verb in verbs {
                let words = prefix + [verb]
                let command = words.joined(separator: " ")
                guard let section = section(command, lines) else {
                    Issue.record("\(page) says nothing of `fusesnap \(command)`")
                    continue
                }
                #expect(try shown(words) == explained(section), "options of `fusesnap \(command)`")
            }
            let sections = lines.filter { $0.hasPrefix(".SS fusesnap ") }
            #expect(sections.count == verbs.count, "a verb that is no more: \(sections)")
        }
    }

    @Test("mount options in the manual are those of the program")
    func mountOptions() throws {
        let text = try manual("fusesnap.1").joined(separator: "\n").replacing("\\-", with: "-")
        // The list in the help.
        let help = try help(["mount"]).joined(separator: " ")
        guard let list = help.split(separator: "Mount options (-o): ").last?.split(separator: "USAGE").first else {
            throw TestFailure(help)
        }
        let names = list.split { ",;: ".contains($0) }.filter { $0.contains("=") || $0 == "no_file_handles" }
        #expect(names.count > 8)
        for name in names {
            let bare = name.split(separator: "=")[0]
            #expect(text.contains(bare), "\(bare)")
        }
    }

    @Test("the manual and Docs/Hooks.md say the same of hooks, and know each sample and each option")
    func hooks() throws {
        let page = try manual("fusesnap-hooks.7").joined(separator: "\n").replacing("\\-", with: "-")
        let document = String(decoding: try (Self.package / "Docs/Hooks.md").contents(), as: UTF8.self)
        for option in try shown(["run"]) where option.hasPrefix("--hook") {
            #expect(page.contains(option) && document.contains("`\(option)"), "\(option)")
        }
        let suffixes = document.split(separator: "`*").dropFirst().compactMap { $0.split(separator: "`").first }
        #expect(suffixes.count == 14)
        for suffix in suffixes { #expect(page.contains(suffix), "\(suffix)") }
        // What is a number in both is the same number.
        for part in ["60 seconds", "2 seconds", "last 20 lines (4 KiB)"] {
            #expect(page.contains(part) && document.contains(part), "\(part)")
        }
        for sample in try (Self.package / "Hooks").entries() {
            #expect(document.contains("`\(sample)`"), "\(sample)")
        }
    }

    @Test("groff shows the manual without a warning", .enabled(if: Machine.has("groff"), "needs groff"))
    func groff() throws {
        for page in try (Self.package / "Docs/man").entries() {
            let finished = try run(
                ["groff", "-man", "-ww", "-z", "-Kutf8", (Self.package / "Docs/man" / page).string])
            #expect(finished.code == 0 && finished.errors.isEmpty, "\(page): \(finished)")
        }
    }

    @Test(
        "man -l shows the manual without a warning, on a terminal of 80 columns, with no word of it broken",
        .enabled(if: Machine.has("man") && Machine.has("groff"), "needs man-db and groff"))
    func man() throws {
        for page in try (Self.package / "Docs/man").entries() {
            let path = (Self.package / "Docs/man" / page).string
            let shown = try run(
                ["man", "--warnings", "-l", path],
                environment: ["MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"])
            #expect(
                shown.code == 0 && shown.errors.isEmpty && shown.output.contains("SEE ALSO"), "\(page): \(shown)")
            for line in shown.output.split(separator: "\n") {
                // A name that is broken at the end of a line cannot be copied.
                #expect(line.count <= 80 && !line.hasSuffix("\u{2010}"), "\(page): \(line)")
            }
        }
    }

    @Test("install puts everything in its place, and uninstall takes it away", .enabled(if: Machine.has("make")))
    func install() throws {
        try TemporaryDirectory.with { top in
            let words = { (target: String) in
                [
                    "make", "-s", "-C", Self.package.string, target, "BINARY=\(Machine.binary)", "DESTDIR=\(top)",
                    "PREFIX=/usr", "MOUNTDIR=/usr/sbin",
                ]
            }
            try succeed(words("install"))
            #expect(try succeed([(top / "usr/bin/fusesnap").string, "--version"]).contains("."))
            #expect(try (top / "usr/sbin/mount.fusesnap").readlink() == "../bin/fusesnap")
            // The helper works by its installed name.
            #expect(try run([(top / "usr/sbin/mount.fuse.fusesnap").string]).code == 1)
            for page: Path in [
                "man1/fusesnap.1", "man1/fusesnap-ctl.1", "man8/mount.fusesnap.8", "man7/fusesnap-hooks.7",
            ] {
                #expect((top / "usr/share/man" / page).exists, "\(page)")
            }
            for document in ["Recipes.md", "Hooks.md", "Json.md"] {
                #expect((top / "usr/share/doc/fusesnap" / Path(document)).exists, "\(document)")
            }
            for unit: Path in ["system", "user"] {
                let path = top / "usr/lib/systemd" / unit / "fusesnap@.service"
                let text = String(decoding: try path.contents(), as: UTF8.self)
                #expect(
                    text.contains("ExecStart=/usr/bin/fusesnap mount --foreground") && !text.contains("@BINDIR@"))
                #expect(
                    text.contains("Type=notify") && text.contains("KillMode=mixed")
                        && !text.contains("auto_unmount"))
                // It outlives what uses it, and is not the first to be killed.
                let wanted =
                    unit == "system"
                    ? ["Before=local-fs.target", "RequiresMountsFor=%f", "OOMScoreAdjust=-900", "LimitNOFILE="]
                    : ["ExecStop=/usr/bin/fusesnap unmount"]
                for part in wanted { #expect(text.contains(part), "\(part)") }
            }
            let completion = top / "usr/share/bash-completion/completions/fusesnap"
            try succeed(["bash", "-n", completion.string])
            // As bash calls it at a Tab: the command, the word, the one before.
            let complete = """
                . "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
                _fusesnap fusesnap "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"; echo "${COMPREPLY[*]}"
                """
            for (words, offered) in [
                (["ctl", "st"], "start stop status"), (["ru"], "run"), (["ctl", "start", "--le"], "--lease"),
                (["run", "--in-place", ""], "auto always never"), (["freeze"], ""), (["hook"], ""),
            ] {
                let shell = ["bash", "--norc", "-c", complete, completion.string, "fusesnap"]
                #expect(try succeed(shell + words) == offered + "\n", "\(words)")
            }
            let fish = top / "usr/share/fish/vendor_completions.d/fusesnap.fish"
            let zsh = top / "usr/share/zsh/site-functions/_fusesnap"
            if Machine.has("zsh") { try succeed(["zsh", "-n", zsh.string]) }
            if Machine.has("fish") { try succeed(["fish", "--no-execute", fish.string]) }
            let completions = try [completion, zsh, fish].map {
                String(decoding: try $0.contents(), as: UTF8.self)
            }
            for words in [["mount"], ["run"], ["ctl", "start"], ["ctl", "status"], ["doctor"]] {
                for option in try shown(words) where option.hasPrefix("--") {
                    #expect(completions.allSatisfy { $0.contains(option.dropFirst(2)) }, "\(words) \(option)")
                }
            }
            #expect((top / "etc/fusesnap/hooks.d").exists)
            // What the administrator made stays.
            try (top / "etc/fusesnap/hooks.d/50-mine").create()
            try succeed(words("uninstall"))
            let left = try succeed(["find", top.string, "!", "-type", "d"])
            #expect(left == "\(top)/etc/fusesnap/hooks.d/50-mine\n")
        }
    }
}
