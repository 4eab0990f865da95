internal import ArgumentParser
internal import Glibc
internal import LinuxSystem
internal import SnapshotMount
internal import SystemPackage

/// The verb under which the daemon starts its freeze helper: not for people.
struct FreezeHelperCommand: ParsableCommand {
    static let configuration = CommandConfiguration(commandName: "freeze-helper", shouldDisplay: false)

    /// Where the helper finds its socket.
    fileprivate static let socketDescriptor: Int32 = 3

    @Argument var mountpoint: String
    @Argument var name: String

    func run() throws {
        do throws(Errno) {
            raiseDescriptorLimit()
            try FreezeHelperProcess.run(
                Descriptor(owning: Self.socketDescriptor), mountpoint: FileName(mountpoint),
                name: FileName(name))
        } catch {
            throw CommandFailure("freeze-helper is started by the daemon alone: \(error)")
        }
    }

}

extension FreezeHelperCommand {
    /// Starts the helper, from the daemon.
    struct Launcher: FreezeHelperLauncher {
        let mountpoint: String

        /// Nothing of the daemon's is passed on but `socket`.
        func launch(_ socket: Descriptor, _ name: FileName) throws(Errno) -> Int32 {
            var actions = posix_spawn_file_actions_t()
            posix_spawn_file_actions_init(&actions)
            defer { posix_spawn_file_actions_destroy(&actions) }
            // Twice, since a descriptor that is in its place already would keep its O_CLOEXEC.
            let socketDescriptor = FreezeHelperCommand.socketDescriptor
            posix_spawn_file_actions_adddup2(&actions, socket.raw, socketDescriptor + 1)
            posix_spawn_file_actions_adddup2(&actions, socketDescriptor + 1, socketDescriptor)
            posix_spawn_file_actions_addclosefrom_np(&actions, socketDescriptor + 1)
            var attributes = posix_spawnattr_t()
            posix_spawnattr_init(&attributes)
            defer { posix_spawnattr_destroy(&attributes) }
            var none = sigset_t()
            sigemptyset(&none)
            posix_spawnattr_setsigmask(&attributes, &none)
            posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
            let words = [
                "fusesnap", FreezeHelperCommand.configuration.commandName ?? "", mountpoint, name.description,
            ]
            var arguments = words.map { strdup($0) } + [nil]
            defer { for case let word? in arguments { free(word) } }
            var child: pid_t = 0
            // By way of /proc, since the program's file may have been replaced.
            let failure = withExtendedLifetime(socket) {
                posix_spawn(&child, "/proc/self/exe", &actions, &attributes, &arguments, environ)
            }
            if failure != 0 { throw Errno(rawValue: failure) }
            return child
        }
    }
}
