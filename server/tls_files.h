// Where the certificates of the server's ports are.
#ifndef OSDN_SERVER_TLS_FILES_H_
#define OSDN_SERVER_TLS_FILES_H_

#include <string>

namespace osdn {

struct TlsFiles {
  std::string cert;       // the chain, the server's own first
  std::string key;        // the private key of the first
  std::string client_ca;  // who must have signed clients' certificates; empty: clients show none
};

}  // namespace osdn

#endif  // OSDN_SERVER_TLS_FILES_H_
