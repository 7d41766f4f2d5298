/* The fastest pair that we could write: batched accepts with naps, windowed non-blocking connects.
 *
 * Server: an acceptor drains the accept queue and then naps OPTION microseconds, so it is not woken
 * for each connection. ACTIVE acceptors are awake at a time. With WATCH set in the environment, each
 * accepted socket is added to epoll, as by default in the engine.
 * Client: connects do not block. The handshake is often over when connect() returns, and a second
 * connect() is the cheapest way to see that. Other connects go to epoll, OPTION at a time.
 * With CPU set in the environment, the processes of this side stay on that processor.
 */
#include "common.h"

static int listener;

static void pin(void) {
    const char *cpu = getenv("CPU");
    if (!cpu) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(atoi(cpu), &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void serve(int process) {
    int watching = getenv("WATCH") ? epoll_create1(0) : -1;
    pin();
    wait_turn(process);
    struct timespec nap = {0, opt.option * 1000};
    for (long i = 0, n = share(process); i < n;) {
        int fd = accept4(listener, 0, 0, SOCK_CLOEXEC);
        if (fd >= 0) {
            if (watching >= 0) {
                struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
                if (epoll_ctl(watching, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
            }
            fds[i++] = fd;
            shared->held[process] = i;
        } else if (errno == EAGAIN) {
            nanosleep(&nap, 0);
        } else if (errno != ECONNABORTED) {
            die("accept4");
        }
    }
    pass_turn();
}

/* Handle the connects under way that have ended. */
static long settle(int process, int epoll, int patience) {
    struct epoll_event events[256];
    int moved = epoll_wait(epoll, events, 256, patience);
    for (int i = 0; i < moved; i++) {
        int fd = events[i].data.fd, error = 0;
        socklen_t size = sizeof error;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
        epoll_ctl(epoll, EPOLL_CTL_DEL, fd, 0);
        if (error) {
            shared->lost[process]++;
            close(fd);
        } else {
            fds[shared->held[process]++] = fd;
        }
    }
    return moved > 0 ? moved : 0;
}

static void open_all(int process) {
    int epoll = epoll_create1(0);
    long under_way = 0, first = (long)process * opt.per_process;
    pin();
    wait_turn(process);
    for (long i = 0, n = share(process); i < n; i++) {
        struct sockaddr_in from = source_of(first + i);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (fd < 0) die("socket");
        int code = bind(fd, (struct sockaddr *)&from, sizeof from);
        if (!code) code = connect(fd, (struct sockaddr *)&opt.target, sizeof opt.target);
        if (code && errno == EINPROGRESS)
            code = connect(fd, (struct sockaddr *)&opt.target, sizeof opt.target);
        if (!code) {
            fds[shared->held[process]++] = fd;
        } else if (errno == EALREADY) {
            struct epoll_event event = {.events = EPOLLOUT, .data.fd = fd};
            epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
            under_way++;
        } else {
            shared->lost[process]++;
            close(fd);
        }
        if (under_way && i % 64 == 63) under_way -= settle(process, epoll, 0);
        while (under_way >= opt.option) under_way -= settle(process, epoll, -1);
    }
    pass_turn();
    while (under_way) under_way -= settle(process, epoll, -1);
}

int main(int argc, char **argv) {
    setup(argc, argv);
    if (opt.is_server) {
        listener = listen_socket();
        fcntl(listener, F_SETFL, O_NONBLOCK);
    }
    start(opt.is_server ? serve : open_all);
    if (opt.is_server)
        run_server();
    else
        run_client();
    return 0;
}
