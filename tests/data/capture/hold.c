#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <errno.h>
/* hold N watch: N loopback connections between two processes; server fds in epoll if watch=1.
   Prints "held", waits for a byte on stdin, then closes with RST and prints "closed". */
static void die(const char*w){perror(w);exit(1);}
int main(int c,char**v){int n=atoi(v[1]),watch=atoi(v[2]);struct rlimit r={n+100,n+100};
 if(setrlimit(RLIMIT_NOFILE,&r)){getrlimit(RLIMIT_NOFILE,&r);r.rlim_cur=r.rlim_max;setrlimit(RLIMIT_NOFILE,&r);}
 int l=socket(AF_INET,SOCK_STREAM,0),one=1;setsockopt(l,SOL_SOCKET,SO_REUSEADDR,&one,sizeof one);
 struct sockaddr_in a={.sin_family=AF_INET,.sin_port=htons(7000),.sin_addr.s_addr=htonl(0x7f000001)};
 if(bind(l,(void*)&a,sizeof a)||listen(l,1024))die("listen");
 int go[2],ok[2];if(pipe(go)||pipe(ok))die("pipe");
 pid_t p=fork();
 if(!p){close(go[1]);int e=watch?epoll_create1(0):-1;for(int i=0;i<n;i++){int f=accept4(l,0,0,SOCK_NONBLOCK);if(f<0)die("accept");
   if(watch){struct epoll_event ev={.events=EPOLLIN|EPOLLRDHUP,.data.fd=f};if(epoll_ctl(e,EPOLL_CTL_ADD,f,&ev))die("epoll_ctl");}}
  if(write(ok[1],"k",1)!=1)die("w");char x;if(read(go[0],&x,1)<0)die("r");_exit(0);}
 close(go[0]);
 int*f=calloc(n,sizeof*f);
 for(int i=0;i<n;i++){f[i]=socket(AF_INET,SOCK_STREAM,0);if(f[i]<0)die("socket");
  struct sockaddr_in s={.sin_family=AF_INET,.sin_port=htons(10000+i),.sin_addr.s_addr=htonl(0x7f000002)};
  setsockopt(f[i],SOL_SOCKET,SO_REUSEADDR,&one,sizeof one);
  if(bind(f[i],(void*)&s,sizeof s))die("bind");
  if(connect(f[i],(void*)&a,sizeof a))die("connect");}
 char x;if(read(ok[0],&x,1)!=1)die("server");
 puts("held");fflush(stdout);if(read(0,&x,1)<0)die("stdin");
 struct linger g={1,0};for(int i=0;i<n;i++){setsockopt(f[i],SOL_SOCKET,SO_LINGER,&g,sizeof g);close(f[i]);}
 close(go[1]);waitpid(p,0,0);puts("closed");fflush(stdout);return 0;}
