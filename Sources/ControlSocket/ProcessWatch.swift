internal import CLinux
internal import SystemPackage

/// Waits for the end of a process that is not a child.
package struct ProcessWatch: ~Copyable {
    private let descriptor: OwnedDescriptor

    /// nil where there is no such process, or it cannot be seen from here.
    package init?(_ process: Int32) {
        guard process > 0 else { return nil }
        do throws(Errno) {
            descriptor = OwnedDescriptor(try SystemCalls.checked { cl_pidfd_open(process) })
        } catch {
            return nil
        }
    }

    /// Whether the process has ended before the time is over: its descriptors are closed then.
    package func waitForEnd(milliseconds: Int32) -> Bool {
        do throws(Errno) {
            return try SystemCalls.waitReadable(descriptor.rawValue, milliseconds: milliseconds)
        } catch {
            preconditionFailure("poll of a descriptor of one's own fails: \(error)")
        }
    }
}
