internal import Glibc
package import SystemPackage

/// The calling thread's errno, as the error of the call that just failed.
@inline(__always)
package func currentErrno() -> Errno {
    Errno(rawValue: errno)
}

/// Passes a call's result on, or throws errno where it is -1. A call that a signal interrupted is made again.
@discardableResult
@inline(__always)
package func checked<Result: SignedInteger>(
    _ call: () -> Result
) throws(Errno) -> Result {
    while true {
        let result = call()
        if result != -1 { return result }
        let error = currentErrno()
        if error != .interrupted { throw error }
    }
}
