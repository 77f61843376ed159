// What answers each route. All run on a connection's thread, which may wait.
#ifndef OSDN_SERVER_HTTP_HANDLERS_H_
#define OSDN_SERVER_HTTP_HANDLERS_H_

#include "server/call_environment.h"
#include "server/http/connection_watch.h"
#include "server/http/http_message.h"

namespace osdn {

// Of one request.
struct HandlerContext {
  CallEnvironment environment;  // with whom its tokens count for
  ConnectionWatch* watch = nullptr;
};

HttpResponse ListModels(const HandlerContext& context, const HttpRequest& request);
// The model named by the path's rest.
HttpResponse GetModel(const HandlerContext& context, const HttpRequest& request);
HttpResponse CreateCompletion(const HandlerContext& context, const HttpRequest& request);
HttpResponse CreateChatCompletion(const HandlerContext& context, const HttpRequest& request);
HttpResponse CreateResponse(const HandlerContext& context, const HttpRequest& request);
// Of the response named by the path's rest, the state: the answer itself is not kept.
HttpResponse DeleteResponse(const HandlerContext& context, const HttpRequest& request);

// StateService's methods; the path's rest is the state's id.
HttpResponse ListStates(const HandlerContext& context, const HttpRequest& request);
HttpResponse GetState(const HandlerContext& context, const HttpRequest& request);
HttpResponse DeleteState(const HandlerContext& context, const HttpRequest& request);
HttpResponse ForkState(const HandlerContext& context, const HttpRequest& request);
HttpResponse SaveState(const HandlerContext& context, const HttpRequest& request);

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_HANDLERS_H_
