/* The plain pair: blocking accept() and blocking connect(), one call after the other.
 *
 * OPTION is not used. Such programs usually let all processes work at once (a large ACTIVE). One
 * after the other saves the scheduler some work.
 */
#include "common.h"

static int listener;

static void serve(int process) {
    wait_turn(process);
    for (long i = 0, n = share(process); i < n; i++) {
        fds[i] = accept(listener, 0, 0);
        if (fds[i] < 0) die("accept");
        shared->held[process]++;
    }
    pass_turn();
}

static void open_all(int process) {
    wait_turn(process);
    long first = (long)process * opt.per_process;
    for (long i = 0, n = share(process); i < n; i++) {
        struct sockaddr_in from = source_of(first + i);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0) die("socket");
        if (bind(fd, (struct sockaddr *)&from, sizeof from) ||
            connect(fd, (struct sockaddr *)&opt.target, sizeof opt.target)) {
            shared->lost[process]++;
            close(fd);
            continue;
        }
        fds[shared->held[process]++] = fd;
    }
    pass_turn();
}

int main(int argc, char **argv) {
    setup(argc, argv);
    if (opt.is_server) listener = listen_socket();
    start(opt.is_server ? serve : open_all);
    if (opt.is_server)
        run_server();
    else
        run_client();
    return 0;
}
