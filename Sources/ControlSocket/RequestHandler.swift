internal import LinuxSystem

/// Carries one request out and words the answer.
struct RequestHandler {
    let controller: any SnapshotController
    let client: ClientConnection

    struct Answer {
        var line: [UInt8]
        /// False after bytes that were no request: what follows them can only be worse.
        var keepsConnection: Bool
        /// What goes with it.
        var descriptors: [Descriptor] = []
    }

    func answer(_ line: [UInt8]) -> Answer {
        let head: RequestHead
        do {
            head = try ControlLine.decode(RequestHead.self, line)
        } catch {
            return refusal(
                .badRequest, "a request must be a JSON object with \"protocol\" and \"command\"")
        }
        guard head.protocol == ControlProtocol.version else {
            return refusal(
                .unsupportedProtocol,
                "the daemon speaks protocol \(ControlProtocol.version), not \(head.protocol); use "
                    + "the "
                    + "fusesnap command of the daemon's version, or unmount and mount again")
        }
        guard let command = Command(rawValue: head.command) else {
            let known = Command.allCases.map(\.rawValue).joined(separator: ", ")
            return refusal(.badRequest, "unknown command; the daemon knows \(known)")
        }
        return carryOut(command, line)
    }

    /// nil where root asks, or who mounted.
    private var ordinary: OrdinaryUser? {
        guard case .user(let user) = client.requester else { return nil }
        return OrdinaryUser(user: user, controller: controller)
    }

    private var notTheirs: ControlFailure {
        ControlFailure(.notActive, "the snapshot has ended, or is another")
    }

    private func carryOut(_ command: Command, _ line: [UInt8]) -> Answer {
        switch command {
        case .start:
            return reply(line, StartOptions()) { [client] options throws(ControlFailure) in
                var options = options
                options.clientProcess = client.process
                options.requester = client.requester
                let report = try controller.start(options)
                if options.leaseConnection == true { client.hold(report.snapshot) }
                return report
            }
        case .stop:
            return reply(line, StopOptions()) { [client] options throws(ControlFailure) in
                var options = options
                if let ordinary {
                    let own = try ordinary.ownSnapshot()
                    options.snapshot = options.snapshot ?? own
                    if options.snapshot != own { throw notTheirs }
                }
                return try controller.stop(options) { progress in
                    client.sendProgress(ControlLine.encode(Reply<NoResult>(progress: progress)))
                }
            }
        case .status:
            return reply(line, NoOptions()) { _ throws(ControlFailure) in
                let own = try ordinary?.ownSnapshot()
                let status = controller.status()
                // Of another one by now, maybe.
                if let ordinary, try ordinary.ownSnapshot() != own { throw notTheirs }
                return status
            }
        case .changed:
            return reply(line, NoOptions()) { [client] _ throws(ControlFailure) in
                let own = try ordinary?.ownSnapshot()
                let packer = ChangePacker { client.sendPart($0) }
                let report = try controller.changed { item throws(ControlFailure) in
                    if let ordinary, try ordinary.ownSnapshot() != own { throw notTheirs }
                    return try packer.add(item)
                }
                _ = packer.flush()
                return report
            }
        case .reader:
            var descriptors: [Descriptor] = []
            var answer = reply(line, ReaderOptions()) { options throws(ControlFailure) in
                let own = try ordinary?.ownSnapshot()
                var access = try controller.readerAccess(options)
                if ordinary != nil {
                    // Users read through the mount, where the kernel checks what they may.
                    access.report.refuse("only root, and who mounted, may read the source past the mount")
                    if access.report.snapshot != own { throw notTheirs }
                }
                if access.report.isDirect { descriptors = access.descriptors }
                return access.report
            }
            answer.descriptors = descriptors
            return answer
        case .unmount:
            return reply(line, UnmountOptions()) { options throws(ControlFailure) in
                if let ordinary { throw ordinary.mayNotUnmount }
                return try controller.unmount(options)
            }
        case .hooks:
            return reply(line, HooksOptions(snapshot: 0, hooks: [])) { options throws(ControlFailure) in
                if let ordinary, try ordinary.ownSnapshot() != options.snapshot { throw notTheirs }
                try controller.noteHooks(options)
                return HooksReport()
            }
        }
    }

    private func reply<Options: Codable, Result: Codable>(
        _ line: [UInt8], _ standard: Options,
        _ carryOut: (Options) throws(ControlFailure) -> Result
    ) -> Answer {
        let request: Request<Options>
        do {
            request = try ControlLine.decode(Request<Options>.self, line)
        } catch {
            return refusal(.badRequest, "the options of the request are not those of its command")
        }
        do throws(ControlFailure) {
            let result = try carryOut(request.options ?? standard)
            return Answer(line: ControlLine.encode(Reply(result: result)), keepsConnection: true)
        } catch {
            return Answer(
                line: ControlLine.encode(Reply<NoResult>(error: error)), keepsConnection: true)
        }
    }

    private func refusal(_ code: ControlFailureCode, _ message: String) -> Answer {
        let failure = ControlFailure(code, message)
        return Answer(
            line: ControlLine.encode(Reply<NoResult>(error: failure)), keepsConnection: false)
    }
}
