internal import ArgumentParser
internal import Glibc
internal import SystemPackage

/// The program under the name that mount(8) calls: `mount.fusesnap SOURCE MOUNTPOINT [-sfnvwr] [-t TYPE] [-o OPTIONS]`,
/// for fstab and `mount -t fusesnap`. It calls `fusesnap mount`.
struct MountHelper {
    /// What mount(8) expects of its helpers.
    enum Code {
        static let done: Int32 = 0
        static let wrongUsage: Int32 = 1
        static let systemError: Int32 = 2
        static let failed: Int32 = 32
    }

    /// Whether this process was started as mount(8)'s helper: by the name mount.fusesnap, or mount.fuse.fusesnap, as
    /// which mount(8) looks for the type fuse.fusesnap.
    static func isMeant(_ program: String) -> Bool {
        let name = program.split(separator: "/").last
        return name == "mount.\(MountOptions.subtype)" || name == "mount.fuse.\(MountOptions.subtype)"
    }

    static let usage =
        "usage: mount.fusesnap SOURCE MOUNTPOINT [-sfnvrw] [-t TYPE] [-o OPTION,...]; see mount.fusesnap(8)"

    /// What the words of the command amount to.
    struct Request: Equatable {
        var paths: [Int] = []
        var options: [String] = []
        var isFake = false
        var isSloppy = false
        var isVerbose = false
    }

    struct Misuse: Error, Equatable {
        var message: String
    }

    /// Takes the words after the program's name apart. Paths are told by their place, since their bytes are passed on
    /// as they are.
    static func parse(_ words: [String]) throws(Misuse) -> Request {
        var request = Request()
        var isOver = false
        var index = 0
        func value(_ rest: Substring, of letter: Character) throws(Misuse) -> String {
            if !rest.isEmpty { return String(rest) }
            index += 1
            guard index < words.count else { throw Misuse(message: "-\(letter) needs a value") }
            return words[index]
        }
        while index < words.count {
            let word = words[index]
            if isOver || !word.hasPrefix("-") || word == "-" {
                request.paths.append(index)
            } else if word == "--" {
                isOver = true
            } else {
                var rest = word.dropFirst()
                letters: while let letter = rest.popFirst() {
                    switch letter {
                    case "f": request.isFake = true
                    case "s": request.isSloppy = true
                    case "v": request.isVerbose = true
                    case "n": break  // Nothing is written to /etc/mtab in any case.
                    case "r": request.options.append("ro")
                    case "w": request.options.append("rw")
                    case "o":
                        request.options.append(try value(rest, of: letter))
                        break letters
                    case "t":
                        let type = try value(rest, of: letter)
                        if type != MountOptions.subtype && type != "fuse.\(MountOptions.subtype)" {
                            throw Misuse(message: "it mounts no file system of type \(type)")
                        }
                        break letters
                    default: throw Misuse(message: "there is no option -\(letter)")
                    }
                }
            }
            index += 1
        }
        if request.paths.count != 2 { throw Misuse(message: "it needs a source and a mount point") }
        if request.isSloppy { request.options = request.options.map(knownOnly) }
        return request
    }

    /// The options of a list without those that fusesnap does not know, as `mount -s` asks for.
    private static func knownOnly(_ list: String) -> String {
        MountOptions.split(list).filter { option in
            do throws(MountOptions.Refusal) {
                _ = try MountOptions(parsing: [MountOptions.escape(option)])
                return true
            } catch {
                return !error.message.hasPrefix(MountOptions.unknown)
            }
        }.map(MountOptions.escape).joined(separator: ",")
    }

    /// Does what the words ask for; the exit code.
    static func run() -> Int32 {
        let words = Array(CommandLine.arguments.dropFirst())
        let request: Request
        do throws(Misuse) {
            request = try parse(words)
        } catch {
            StandardError.write("mount.fusesnap: \(error.message)\n\(usage)")
            return Code.wrongUsage
        }
        let given = request.options.flatMap(MountOptions.split)
        if given.contains("remount") {
            return request.isFake ? Code.done : remount(words[request.paths[1]], given)
        }
        let options = request.options.flatMap { ["-o", $0] }
        let paths = request.paths.map { words[$0] }
        do {
            _ = try Mount.parse(options + ["--"] + paths)
        } catch {
            StandardError.write("mount.fusesnap: \(Mount.message(for: error))")
            return Code.wrongUsage
        }
        if request.isVerbose {
            print("fusesnap mount \((options + ["--"] + paths).joined(separator: " "))")
        }
        if request.isFake { return Code.done }
        var arguments = (["fusesnap", "mount"] + options + ["--"]).map { strdup($0) }
        for index in request.paths {
            arguments.append(CommandLine.unsafeArgv[index + 1].map { strdup($0) } ?? nil)
        }
        return call("/proc/self/exe", arguments + [nil])
    }

    /// What `mount -o remount` may change of a mount that is there: the kernel's own flags. mount(8) names all options
    /// that the mount has; the daemon's stay as they are.
    private static let remountFlags: Set<String> = [
        "remount", "ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "atime",
        "nodiratime", "diratime", "relatime", "norelatime", "strictatime", "nostrictatime", "dirsync", "sync",
        "async",
    ]

    /// mount(8) itself does it, where it does not call its helper.
    private static func remount(_ mountpoint: String, _ options: [String]) -> Int32 {
        let list = options.filter { remountFlags.contains($0) }.joined(separator: ",")
        return call("mount", (["mount", "-i", "-o", list, mountpoint] as [String]).map { strdup($0) } + [nil])
    }

    /// Runs a program, found by PATH, with these words; the helper's exit code.
    private static func call(
        _ program: String, _ words: [UnsafeMutablePointer<CChar>?]
    ) -> Int32 {
        defer { for case let word? in words { free(word) } }
        var child: pid_t = 0
        let failure = posix_spawnp(&child, program, nil, nil, words, environ)
        if failure != 0 {
            StandardError.write("mount.fusesnap: cannot start \(program): \(Errno(rawValue: failure))")
            return Code.systemError
        }
        var status: Int32 = 0
        while waitpid(child, &status, 0) < 0 {
            if errno != EINTR { return Code.systemError }
        }
        return switch status {
        case 0: Code.done
        case EX_USAGE << 8: Code.wrongUsage
        default: Code.failed
        }
    }
}
